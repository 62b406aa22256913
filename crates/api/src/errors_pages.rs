//! The pages behind the `type` of an error: compiled in, so that they fit the version.

use axum::http::header;
use axum::response::IntoResponse;
use larder_api_types::Problem;
use larder_model::Code;

use crate::body::PathText;
use crate::error::ApiError;

macro_rules! pages {
    ($($code:literal)*) => {
        /// Code and page, as Markdown.
        const PAGES: &[(&str, &str)] = &[
            $(($code, include_str!(concat!("../../../docs/errors/", $code, ".md"))),)*
        ];
    };
}

pages! {
    "invalid-request" "invalid-name" "name-taken" "engine-not-found" "engine-in-use"
    "engine-unusable" "architecture-not-available" "memory-out-of-range" "shards-out-of-range"
    "replicas-out-of-range" "password-too-weak" "password-missing" "container-cluster-not-found"
    "container-cluster-unusable" "container-cluster-in-use" "worker-not-lost"
    "storage-class-not-found"
    "capacity-exceeded" "unknown-parameter" "parameter-invalid" "account-not-found"
    "rules-refused" "update-failed" "data-too-large" "no-free-port" "disk-full" "not-found" "method-not-allowed"
    "request-too-large" "instance-busy" "instance-not-ready" "node-not-found"
    "no-eligible-replica" "data-loss-not-accepted" "generation-conflict" "operation-cancelled"
    "not-cancellable" "not-logged-in" "login-failed" "not-allowed" "too-many-attempts"
    "not-ready" "timeout" "internal"
}

/// What an error code means and what to do, as Markdown.
#[utoipa::path(get, path = "/api/v1/errors/{code}", tag = "health", security(()),
    params(("code" = String, Path, description = "A code, such as `name-taken`")),
    responses(
        (status = 200, description = "The page", body = String, content_type = "text/markdown"),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn error_page(PathText(code): PathText) -> Result<impl IntoResponse, ApiError> {
    match PAGES.iter().find(|(known, _)| *known == code) {
        Some((_, page)) => Ok(([(header::CONTENT_TYPE, "text/markdown; charset=utf-8")], *page)),
        None => Err(ApiError::new(Code::NotFound, format!("there is no error code `{code}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_page() {
        for code in Code::ALL {
            let (_, page) = PAGES
                .iter()
                .find(|(known, _)| known == &code.as_str())
                .unwrap_or_else(|| panic!("docs/errors/{code}.md is not among the pages"));
            assert!(page.starts_with(&format!("# {code}\n")), "{code}");
            assert!(page.contains("## What to do"), "{code}");
        }
        assert_eq!(PAGES.len(), Code::ALL.len());
    }
}
