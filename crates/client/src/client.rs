//! The requests, one method each.

use std::time::Duration;

use larder_api_types::{
    Account, AddEngine, BindContainerCluster, ContainerCluster, CreateAccount, CreateInstance,
    CreateToken, CreatedToken, Engine, Event, FailoverInstance, Instance, Login, Operation,
    Parameter, ParameterHistory, PlanView, Problem, Project, Record, ResetParameters,
    ResizeInstance, RestartInstance, ScaleInstance, Session, SetChained, SetContainerCluster,
    SetInstancePassword, SetParameters, Status, Token, UpdateAccount, UpdateInstance, UpdateUser,
    UpgradeInstance, WhoAmI,
};
use larder_model::{Code, Secret};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ClientError;

/// A server that does not even accept within this time is not reachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Nothing but streams takes longer: accepted work goes on as an operation.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Three keep-alives of the event stream may be lost before it counts as broken.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(45);

/// An instance as users name it: by name or id, in a project.
#[derive(Clone, Copy, Debug)]
pub struct InstanceRef<'a> {
    pub project: &'a str,
    pub name: &'a str,
}

/// Which instances to list, and how.
#[derive(Clone, Debug, Default, Serialize)]
pub struct InstanceFilter {
    /// All projects when `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sort: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// A connection to one server as one user. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<Secret>,
}

impl Client {
    /// A client of `server` (`http://host:port` or `https://…`); no request is made yet.
    ///
    /// # Errors
    /// [`ClientError::InvalidServer`] when the address is not one.
    pub fn new(server: &str, token: Option<Secret>) -> Result<Self, ClientError> {
        let invalid =
            |reason: String| ClientError::InvalidServer { server: server.to_owned(), reason };
        let base = Url::parse(server).map_err(|e| invalid(e.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(invalid("the scheme is neither http nor https".into()));
        }
        if !base.username().is_empty() || base.password().is_some() {
            // Not repeated in the error: it may hold a password.
            return Err(ClientError::InvalidServer {
                server: base.host_str().unwrap_or_default().to_owned(),
                reason: "user and password do not belong into an address".into(),
            });
        }
        // The first one installed stays; with none reqwest would refuse to build.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            // A redirect could carry the token to another server.
            .redirect(reqwest::redirect::Policy::none());
        if base.scheme() == "http" {
            // Not used; without this a machine (or image) that has no authorities could not even
            // speak without TLS.
            builder = builder.tls_certs_only([]);
        }
        if is_loopback(&base) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|e| invalid(e.to_string()))?;
        Ok(Self { http, base, token })
    }

    /// The server's address, as it was given.
    pub fn server(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// The same server with another token.
    #[must_use]
    pub fn with_token(mut self, token: Option<Secret>) -> Self {
        self.token = token;
        self
    }

    // Sessions and accounts.

    /// # Errors
    /// `login-failed`, `too-many-attempts`, and what every request can fail with.
    pub async fn login(&self, user: &str, password: &Secret) -> Result<Session, ClientError> {
        let body = Login { user: user.to_owned(), password: password.clone(), cookie: false };
        self.json(self.request(Method::POST, &["sessions"]).json(&body)).await
    }

    /// Ends the session of this client's token.
    pub async fn logout(&self) -> Result<(), ClientError> {
        self.empty(self.request(Method::DELETE, &["sessions", "current"])).await
    }

    pub async fn whoami(&self) -> Result<WhoAmI, ClientError> {
        self.json(self.request(Method::GET, &["whoami"])).await
    }

    pub async fn user_set_password(&self, user: &str, to: &Secret) -> Result<(), ClientError> {
        let body = UpdateUser { password: to.clone() };
        self.empty(self.request(Method::PATCH, &["users", user]).json(&body)).await
    }

    pub async fn token_create(&self, token: &CreateToken) -> Result<CreatedToken, ClientError> {
        self.json(self.request(Method::POST, &["tokens"]).json(token)).await
    }

    pub async fn token_list(&self) -> Result<Vec<Token>, ClientError> {
        self.json(self.request(Method::GET, &["tokens"])).await
    }

    pub async fn token_revoke(&self, id: &str) -> Result<(), ClientError> {
        self.empty(self.request(Method::DELETE, &["tokens", id])).await
    }

    pub async fn status(&self) -> Result<Status, ClientError> {
        self.json(self.request(Method::GET, &["status"])).await
    }

    // Instances.

    /// Asks for a new instance; the answer is the operation that makes it.
    pub async fn instance_create(&self, new: &CreateInstance) -> Result<Operation, ClientError> {
        self.json(self.request(Method::POST, &["instances"]).json(new)).await
    }

    /// What creation would do. Nothing is kept.
    pub async fn instance_dry_run(&self, new: &CreateInstance) -> Result<PlanView, ClientError> {
        let request = self.request(Method::POST, &["instances"]).query(&[("dry_run", "true")]);
        self.json(request.json(new)).await
    }

    pub async fn instance_list(
        &self,
        filter: &InstanceFilter,
    ) -> Result<Vec<Instance>, ClientError> {
        self.json(self.request(Method::GET, &["instances"]).query(filter)).await
    }

    pub async fn instance_get(&self, instance: InstanceRef<'_>) -> Result<Instance, ClientError> {
        self.json(self.instance(Method::GET, instance, None)).await
    }

    pub async fn instance_plan(&self, instance: InstanceRef<'_>) -> Result<PlanView, ClientError> {
        self.json(self.instance(Method::GET, instance, Some("plan"))).await
    }

    pub async fn instance_update(
        &self,
        instance: InstanceRef<'_>,
        change: &UpdateInstance,
    ) -> Result<Instance, ClientError> {
        self.json(self.instance(Method::PATCH, instance, None).json(change)).await
    }

    pub async fn instance_failover(
        &self,
        instance: InstanceRef<'_>,
        how: &FailoverInstance,
    ) -> Result<Operation, ClientError> {
        self.json(self.instance(Method::POST, instance, Some("failover")).json(how)).await
    }

    pub async fn instance_restart(
        &self,
        instance: InstanceRef<'_>,
        what: &RestartInstance,
    ) -> Result<Operation, ClientError> {
        self.json(self.instance(Method::POST, instance, Some("restart")).json(what)).await
    }

    /// Gives every node another memory.
    pub async fn instance_resize(
        &self,
        instance: InstanceRef<'_>,
        to: &ResizeInstance,
    ) -> Result<Operation, ClientError> {
        self.json(self.instance(Method::POST, instance, Some("resize")).json(to)).await
    }

    /// Changes how many nodes the instance has.
    pub async fn instance_scale(
        &self,
        instance: InstanceRef<'_>,
        to: &ScaleInstance,
    ) -> Result<Operation, ClientError> {
        self.json(self.instance(Method::POST, instance, Some("scale")).json(to)).await
    }

    /// The parameters that the instance's engine and architecture have.
    pub async fn parameter_list(
        &self,
        instance: InstanceRef<'_>,
    ) -> Result<Vec<Parameter>, ClientError> {
        self.json(self.instance(Method::GET, instance, Some("parameters"))).await
    }

    /// Gives parameters other values.
    pub async fn parameter_set(
        &self,
        instance: InstanceRef<'_>,
        to: &SetParameters,
    ) -> Result<Operation, ClientError> {
        self.json(self.instance(Method::PUT, instance, Some("parameters")).json(to)).await
    }

    /// Gives parameters their defaults again.
    pub async fn parameter_reset(
        &self,
        instance: InstanceRef<'_>,
        which: &ResetParameters,
    ) -> Result<Operation, ClientError> {
        let path = ["instances", instance.name, "parameters", "reset"];
        let request = self.request(Method::POST, &path).query(&[("project", instance.project)]);
        self.json(request.json(which)).await
    }

    /// Who has changed which parameters, the newest first.
    pub async fn parameter_history(
        &self,
        instance: InstanceRef<'_>,
    ) -> Result<Vec<ParameterHistory>, ClientError> {
        let path = ["instances", instance.name, "parameters", "history"];
        self.json(self.request(Method::GET, &path).query(&[("project", instance.project)])).await
    }

    /// The accounts of an instance, by name.
    pub async fn account_list(
        &self,
        instance: InstanceRef<'_>,
    ) -> Result<Vec<Account>, ClientError> {
        self.json(self.instance(Method::GET, instance, Some("accounts"))).await
    }

    /// Makes an account.
    pub async fn account_create(
        &self,
        instance: InstanceRef<'_>,
        account: &CreateAccount,
    ) -> Result<Operation, ClientError> {
        self.json(self.instance(Method::POST, instance, Some("accounts")).json(account)).await
    }

    /// Changes what an account may do, or its password.
    pub async fn account_update(
        &self,
        instance: InstanceRef<'_>,
        account: &str,
        to: &UpdateAccount,
    ) -> Result<Operation, ClientError> {
        self.json(self.account(Method::PATCH, instance, account).json(to)).await
    }

    /// Deletes an account.
    pub async fn account_delete(
        &self,
        instance: InstanceRef<'_>,
        account: &str,
    ) -> Result<Operation, ClientError> {
        self.json(self.account(Method::DELETE, instance, account)).await
    }

    fn account(&self, method: Method, of: InstanceRef<'_>, account: &str) -> RequestBuilder {
        let path = ["instances", of.name, "accounts", account];
        self.request(method, &path).query(&[("project", of.project)])
    }

    /// Shares the slots of a cluster instance by what its shards hold.
    pub async fn instance_rebalance(
        &self,
        instance: InstanceRef<'_>,
    ) -> Result<Operation, ClientError> {
        self.json(self.instance(Method::POST, instance, Some("rebalance"))).await
    }

    /// Lets replicas copy from each other in a row, or all from the primary.
    pub async fn instance_set_chained(
        &self,
        instance: InstanceRef<'_>,
        to: &SetChained,
    ) -> Result<Operation, ClientError> {
        self.json(self.instance(Method::POST, instance, Some("chained")).json(to)).await
    }

    /// Runs the instance on another engine.
    pub async fn instance_upgrade(
        &self,
        instance: InstanceRef<'_>,
        to: &UpgradeInstance,
    ) -> Result<Operation, ClientError> {
        self.json(self.instance(Method::POST, instance, Some("upgrade")).json(to)).await
    }

    /// Gives the instance another password.
    pub async fn instance_set_password(
        &self,
        instance: InstanceRef<'_>,
        to: &SetInstancePassword,
    ) -> Result<Operation, ClientError> {
        self.json(self.instance(Method::POST, instance, Some("password")).json(to)).await
    }

    /// Deletes the instance and its data for good.
    pub async fn instance_delete_permanently(
        &self,
        instance: InstanceRef<'_>,
    ) -> Result<Operation, ClientError> {
        let request =
            self.instance(Method::DELETE, instance, None).query(&[("policy", "permanent")]);
        self.json(request).await
    }

    // Operations, events, records.

    pub async fn operation_get(&self, id: &str) -> Result<Operation, ClientError> {
        self.json(self.request(Method::GET, &["operations", id])).await
    }

    /// The newest first, at most `limit`; of all instances of the project, or of one.
    pub async fn operation_list(
        &self,
        project: &str,
        instance: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Operation>, ClientError> {
        let request = self.request(Method::GET, &["operations"]).query(&[("project", project)]);
        let request = request.query(&[("limit", limit)]);
        self.json(optional(request, "instance", instance)).await
    }

    pub async fn operation_cancel(&self, id: &str) -> Result<Operation, ClientError> {
        self.json(self.request(Method::POST, &["operations", id, "cancel"])).await
    }

    /// The newest events, at most `limit`, oldest first.
    pub async fn event_list(
        &self,
        project: &str,
        instance: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Event>, ClientError> {
        let request = self.request(Method::GET, &["events"]).query(&[("project", project)]);
        let request = request.query(&[("limit", limit)]);
        self.json(optional(request, "instance", instance)).await
    }

    /// The newest records, at most `limit`, oldest first.
    ///
    /// `since` is RFC 3339.
    pub async fn record_list(
        &self,
        instance: Option<&str>,
        user: Option<&str>,
        since: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Record>, ClientError> {
        let mut request = self.request(Method::GET, &["records"]).query(&[("limit", limit)]);
        request = optional(request, "instance", instance);
        request = optional(request, "user", user);
        self.json(optional(request, "since", since)).await
    }

    // The catalogue.

    pub async fn engine_list(&self) -> Result<Vec<Engine>, ClientError> {
        self.json(self.request(Method::GET, &["engines"])).await
    }

    pub async fn engine_add(&self, path: &str) -> Result<Engine, ClientError> {
        let body = AddEngine { path: path.to_owned() };
        self.json(self.request(Method::POST, &["engines"]).json(&body)).await
    }

    pub async fn engine_remove(&self, name: &str) -> Result<(), ClientError> {
        self.empty(self.request(Method::DELETE, &["engines", name])).await
    }

    pub async fn container_cluster_list(&self) -> Result<Vec<ContainerCluster>, ClientError> {
        self.json(self.request(Method::GET, &["container-clusters"])).await
    }

    pub async fn container_cluster_get(&self, name: &str) -> Result<ContainerCluster, ClientError> {
        self.json(self.request(Method::GET, &["container-clusters", name])).await
    }

    pub async fn container_cluster_bind(
        &self,
        asked: &BindContainerCluster,
    ) -> Result<ContainerCluster, ClientError> {
        self.json(self.request(Method::POST, &["container-clusters"]).json(asked)).await
    }

    pub async fn container_cluster_set(
        &self,
        name: &str,
        asked: &SetContainerCluster,
    ) -> Result<ContainerCluster, ClientError> {
        self.json(self.request(Method::PATCH, &["container-clusters", name]).json(asked)).await
    }

    pub async fn container_cluster_confirm_lost(
        &self,
        name: &str,
        worker: &str,
    ) -> Result<(), ClientError> {
        let path = ["container-clusters", name, "workers", worker, "confirm-lost"];
        self.empty(self.request(Method::POST, &path)).await
    }

    pub async fn container_cluster_unbind(&self, name: &str) -> Result<(), ClientError> {
        self.empty(self.request(Method::DELETE, &["container-clusters", name])).await
    }

    pub async fn project_list(&self) -> Result<Vec<Project>, ClientError> {
        self.json(self.request(Method::GET, &["projects"])).await
    }

    // Plumbing.

    fn instance(
        &self,
        method: Method,
        instance: InstanceRef<'_>,
        verb: Option<&str>,
    ) -> RequestBuilder {
        let mut path = vec!["instances", instance.name];
        path.extend(verb);
        self.request(method, &path).query(&[("project", instance.project)])
    }

    pub(crate) fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.checked(request.timeout(REQUEST_TIMEOUT)).await?;
        let status = response.status();
        let body = response.bytes().await.map_err(|e| self.unreachable(e))?;
        serde_json::from_slice(&body).map_err(|_| self.not_larder(status))
    }

    async fn empty(&self, request: RequestBuilder) -> Result<(), ClientError> {
        self.checked(request.timeout(REQUEST_TIMEOUT)).await.map(drop)
    }

    /// Sends and turns every answer that is not a success into an error.
    pub(crate) async fn checked(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|e| self.unreachable(e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.map_err(|e| self.unreachable(e))?;
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(ClientError::from_problem(problem)),
            Err(_) if status == StatusCode::UNAUTHORIZED => Err(ClientError::from_problem(
                Problem::new(Code::NotLoggedIn, "the server asks for a login"),
            )),
            Err(_) => Err(self.not_larder(status)),
        }
    }

    pub(crate) fn unreachable(&self, error: reqwest::Error) -> ClientError {
        // The chain's last link says why: "connection refused", "deadline has elapsed".
        let error = error.without_url();
        let mut reason: &dyn std::error::Error = &error;
        while let Some(source) = reason.source() {
            reason = source;
        }
        ClientError::Unreachable { server: self.server().to_owned(), reason: reason.to_string() }
    }

    fn not_larder(&self, status: StatusCode) -> ClientError {
        ClientError::NotLarder { server: self.server().to_owned(), what: status.to_string() }
    }
}

fn optional(request: RequestBuilder, name: &str, value: Option<&str>) -> RequestBuilder {
    match value {
        Some(value) => request.query(&[(name, value)]),
        None => request,
    }
}

/// Whether the address names this machine, so that a proxy of the environment must not be asked.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_path_segment() {
        let client = Client::new("http://127.0.0.1:7300", None).unwrap();
        let instance = InstanceRef { project: "a&b", name: "../users/admin" };
        let url = client.instance(Method::GET, instance, None).build().unwrap().url().to_string();
        assert_eq!(url, "http://127.0.0.1:7300/api/v1/instances/..%2Fusers%2Fadmin?project=a%26b");
    }

    #[test]
    fn token_is_not_in_debug_output() {
        let client =
            Client::new("http://127.0.0.1:7300", Some(Secret::new("hunter2-token"))).unwrap();
        assert!(!format!("{client:?}").contains("hunter2"));
    }

    #[test]
    fn addresses_that_are_none_are_refused_without_repeating_passwords() {
        for server in ["", "127.0.0.1:7300", "ftp://x", "http://u:hunter2@host"] {
            let error = Client::new(server, None).unwrap_err();
            assert!(matches!(error, ClientError::InvalidServer { .. }), "{server}");
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_unreachable() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let client = Client::new(&format!("http://{address}"), None).unwrap();
        let error = client.whoami().await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    }
}
