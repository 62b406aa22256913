//! From what the API server says to what a backend may say.

use larder_cluster::ClusterError;
use larder_model::{Code, Refusal};

/// What a failed call means. Only an answer that says that the wish itself cannot be is a
/// refusal; a missing right, a busy or a silent API server leave the cluster's state unknown.
pub(crate) fn said(cluster: &str, doing: &str, error: &kube::Error) -> ClusterError {
    let unknown = |reason: String| ClusterError::Unreachable {
        cluster: cluster.to_owned(),
        reason: format!("{doing}: {reason}"),
    };
    match error {
        kube::Error::Api(status) => match status.code {
            403 if is_quota(&status.message) => refused(
                Code::CapacityExceeded,
                format!("{doing}: a quota of the namespace does not allow it: {}", status.message),
            ),
            403 | 404 if is_without_namespace(&status.message) => refused(
                Code::ContainerClusterUnusable,
                format!("{doing}: its namespace is gone: {}", status.message),
            ),
            403 if is_admission(&status.message) => refused(
                Code::NotAllowed,
                format!("{doing}: the Kubernetes cluster denies it: {}", status.message),
            ),
            422 if is_out_of_ports(&status.message) => refused(
                Code::NoFreePort,
                format!(
                    "{doing}: the Kubernetes cluster has no node port for it: {}",
                    status.message
                ),
            ),
            400 | 422 => refused(
                Code::Internal,
                format!("{doing}: the API server does not accept it: {}", status.message),
            ),
            code => unknown(with_next_move(
                code,
                format!("the API server answers {code}: {}", status.message),
            )),
        },
        other => unknown(chain(other)),
    }
}

/// `nodePort: … range is full`, or the port that it has had is somebody else's by now.
fn is_out_of_ports(message: &str) -> bool {
    message.contains("failed to allocate a nodePort")
        || message.contains("range is full")
        || message.contains("provided port is already allocated")
}

/// An admission plugin or webhook has said no; a missing right sounds otherwise.
pub(crate) fn is_admission(message: &str) -> bool {
    message.contains("admission webhook")
        || message.contains("failed calling webhook")
        || message.contains("violates PodSecurity")
        || message.contains("ValidatingAdmissionPolicy")
}

/// Also of ranges: what a namespace allows in all, or in one object.
pub(crate) fn is_quota(message: &str) -> bool {
    message.contains("exceeded quota")
        || message.contains("failed quota")
        || message.contains("status unknown for quota")
        || message.contains("usage per")
}

/// There is no such namespace, or it is on its way out: nothing can be made in it.
pub(crate) fn is_without_namespace(message: &str) -> bool {
    (message.starts_with("namespaces \"") && message.ends_with("\" not found"))
        || message.contains("because it is being terminated")
}

/// The RoleBinding that is there gives another role, and that cannot be changed
/// (kube-apiserver, `pkg/apis/rbac/validation`).
pub(crate) fn is_of_another_role(error: &ClusterError) -> bool {
    matches!(error, ClusterError::Refused(refusal)
        if refusal.detail.contains("cannot change roleRef"))
}

/// What a person can do about credentials that are not, or no more, good for anything.
pub(crate) fn with_next_move(code: u16, text: String) -> String {
    match code {
        401 => format!(
            "{text} (the binding's credentials have ended or were withdrawn: `larder \
             container-cluster rebind` with new ones)"
        ),
        403 => format!(
            "{text} (the binding's credentials have lost a right: give it back, or `larder \
             container-cluster rebind` with others)"
        ),
        429 => format!("{text} (the API server is overloaded)"),
        _ => text,
    }
}

/// An error with its causes: the outer ones of an HTTP client say little.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text = format!("{text}: {inner}");
        }
        cause = error.source();
    }
    text
}

pub(crate) fn refused(code: Code, detail: impl Into<String>) -> ClusterError {
    ClusterError::Refused(Refusal::new(code, detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn api(code: u16, message: &str) -> ClusterError {
        let status = Status { code, message: message.to_owned(), ..Status::default() };
        said("east", "applying n-1", &kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn a_missing_right_and_a_busy_server_leave_the_state_unknown() {
        for (code, message) in [
            (403, "services is forbidden: User \"x\" cannot list resource \"services\""),
            (401, "Unauthorized"),
            (429, "too many requests"),
            (500, "etcdserver: request timed out"),
        ] {
            assert!(api(code, message).is_retryable(), "{code} {message}");
        }
    }

    #[test]
    fn a_namespace_that_is_gone_or_going_is_said_to_be() {
        for (code, message) in [
            (404, "namespaces \"larder\" not found"),
            (
                403,
                "configmaps \"i-1\" is forbidden: unable to create new content in namespace \
                   larder because it is being terminated",
            ),
        ] {
            match api(code, message) {
                ClusterError::Refused(refusal) => {
                    assert_eq!(refusal.code, Code::ContainerClusterUnusable);
                }
                other => panic!("{other}"),
            }
        }
        assert!(api(404, "services \"n-1\" not found").is_retryable());
    }

    #[test]
    fn lost_credentials_are_said_with_the_way_out() {
        assert!(api(401, "Unauthorized").to_string().contains("rebind"));
        assert!(api(403, "pods is forbidden").to_string().contains("rebind"));
    }

    #[test]
    fn a_full_range_of_node_ports_is_said_to_be_one() {
        let message = "Service \"n\" is invalid: spec.ports[0].nodePort: Invalid value: 31000: \
                       provided port is already allocated";
        match api(422, message) {
            ClusterError::Refused(refusal) => assert_eq!(refusal.code, Code::NoFreePort),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_quota_and_a_webhook_are_refusals_that_say_why() {
        for message in [
            "pods \"n\" is forbidden: exceeded quota: small",
            "admission webhook \"policy.example\" denied the request: no",
        ] {
            match api(403, message) {
                ClusterError::Refused(refusal) => assert!(refusal.detail.contains(message)),
                other => panic!("{other}"),
            }
        }
    }
}
