//! Refusals: what Larder says when it will not do something.

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($variant:ident = $text:literal, $status:literal, $title:literal;)*) => {
        /// Stable error codes. Scripts match on the text; a page per code is in `docs/errors/`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $(
            #[doc = $title]
            $variant,
        )* }

        impl Code {
            pub const ALL: &'static [Code] = &[$(Code::$variant),*];

            /// The code as scripts see it.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            /// The HTTP status that goes with the code.
            pub fn status(self) -> u16 {
                match self { $(Code::$variant => $status,)* }
            }

            /// A short title, the same for every occurrence.
            pub fn title(self) -> &'static str {
                match self { $(Code::$variant => $title,)* }
            }
        }
    };
}

codes! {
    InvalidRequest = "invalid-request", 400, "The request cannot be read";
    InvalidName = "invalid-name", 400, "The name is not allowed";
    NameTaken = "name-taken", 409, "The name is in use";
    EngineNotFound = "engine-not-found", 400, "No such engine is installed";
    EngineInUse = "engine-in-use", 409, "Instances run on this engine";
    EngineUnusable = "engine-unusable", 400, "The server binary cannot be used as an engine";
    ArchitectureNotAvailable = "architecture-not-available", 400, "The architecture does not exist in this version";
    MemoryOutOfRange = "memory-out-of-range", 400, "The memory per node is out of range";
    ShardsOutOfRange = "shards-out-of-range", 400, "The shard count is out of range";
    ReplicasOutOfRange = "replicas-out-of-range", 400, "The replica count is out of range";
    PasswordTooWeak = "password-too-weak", 400, "The password is too weak";
    PasswordMissing = "password-missing", 400, "A password is needed";
    ContainerClusterNotFound = "container-cluster-not-found", 400, "No such container cluster";
    ContainerClusterUnusable = "container-cluster-unusable", 400, "The container cluster cannot be used";
    ContainerClusterInUse = "container-cluster-in-use", 409, "Instances live on this container cluster";
    WorkerNotLost = "worker-not-lost", 409, "The worker is not lost";
    StorageClassNotFound = "storage-class-not-found", 400, "No such storage class";
    CapacityExceeded = "capacity-exceeded", 409, "The container cluster has no room";
    UnknownParameter = "unknown-parameter", 400, "No such parameter";
    ParameterInvalid = "parameter-invalid", 400, "The parameter does not take this value";
    AccountNotFound = "account-not-found", 404, "The instance has no such account";
    RulesRefused = "rules-refused", 400, "The rules of the account are refused";
    UpdateFailed = "update-failed", 409, "A server refuses the new values";
    DataTooLarge = "data-too-large", 409, "The data do not fit";
    NoFreePort = "no-free-port", 409, "No port is free";
    DiskFull = "disk-full", 507, "The disk is full";
    NotFound = "not-found", 404, "No such thing";
    MethodNotAllowed = "method-not-allowed", 405, "The route does not know this method";
    RequestTooLarge = "request-too-large", 413, "The request is too large";
    InstanceBusy = "instance-busy", 409, "Another operation holds the instance";
    InstanceNotReady = "instance-not-ready", 409, "The instance is not in a state that allows this";
    NodeNotFound = "node-not-found", 400, "The instance has no such node";
    NoEligibleReplica = "no-eligible-replica", 409, "No replica may take over";
    DataLossNotAccepted = "data-loss-not-accepted", 409, "The change would lose data";
    GenerationConflict = "generation-conflict", 409, "Somebody else changed the instance";
    OperationCancelled = "operation-cancelled", 409, "The operation was cancelled";
    NotCancellable = "not-cancellable", 409, "The operation cannot be cancelled";
    NotLoggedIn = "not-logged-in", 401, "A login is needed";
    LoginFailed = "login-failed", 401, "User or password is wrong";
    NotAllowed = "not-allowed", 403, "The permission is missing";
    TooManyAttempts = "too-many-attempts", 429, "Too many attempts";
    NotReady = "not-ready", 503, "The server is not ready";
    Timeout = "timeout", 504, "It took too long";
    Internal = "internal", 500, "Something went wrong inside Larder";
}

impl Code {
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("unknown error code `{text}`")))
    }
}

/// One structured refusal: a stable code, a sentence that says what is wrong and what to do next,
/// and the field at fault where there is one. Safe to show to the user who asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{code}: {detail}")]
pub struct Refusal {
    pub code: Code,
    pub detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl Refusal {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), field: None }
    }

    /// Names the request field that is at fault.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }
}
