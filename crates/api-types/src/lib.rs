//! The wire format of Larder's REST API: requests, responses, events, errors.
//!
//! Apart from `larder-model`, so that each can change alone: these shapes are a contract with
//! scripts (`larder … -o json` prints them as they are). Requests refuse unknown fields;
//! responses may grow. Times are RFC 3339 in UTC, sizes are bytes.

mod account;
mod catalogue;
mod cluster;
mod event;
mod instance;
mod operation;
mod parameter;
mod problem;
mod secret_in_body;
mod session;

/// No list answers more rows, whatever `limit` asks for.
pub const LIMIT_MAX: u32 = 100_000;

pub use account::{Account, CreateAccount, UpdateAccount};
pub use catalogue::{AddEngine, Advice, ContainerClusterStatus, Engine, Health, Project, Status};
pub use cluster::{
    BindContainerCluster, ContainerCluster, SetContainerCluster, StorageClass, Worker,
};
pub use event::{Event, Record};
pub use instance::{
    Condition, CreateInstance, Endpoint, Endpoints, FailoverInstance, HostPort, Instance, Node,
    PlanView, ResizeInstance, RestartInstance, ScaleInstance, SetChained, SetInstancePassword,
    UpdateInstance, UpgradeInstance,
};
pub use operation::{Operation, OperationStep};
pub use parameter::{Parameter, ParameterChange, ParameterHistory, ResetParameters, SetParameters};
pub use problem::Problem;
pub use session::{CreateToken, CreatedToken, Login, Session, Token, UpdateUser, WhoAmI};
