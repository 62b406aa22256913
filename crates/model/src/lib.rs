//! The words of Larder: identifiers, sizes, specs, observations, steps, operations, events.
//!
//! Pure: no IO, no clock, no chance. Constructors validate, so a value that exists is valid.
//! What is *decided* from these words lives in `larder-planner` and `larder-election`.

mod account;
mod address;
pub mod agent;
mod architecture;
mod error;
mod event;
mod exposure;
mod hindrance;
mod ids;
pub mod kube;
pub mod lease;
pub mod local;
mod node;
mod observation;
mod operation;
mod parameters;
mod password;
pub mod plan;
mod policy;
mod secret;
mod size;
mod slot_move;
mod slots;
mod spec;
mod state;
mod time;
mod users;

pub use account::{
    ACCOUNTS, Account, AccountRole, DENIED, acl_of, check_account_name, check_rules,
};
pub use address::Address;
pub use architecture::{Architecture, EndpointKind, NodeMode};
pub use error::{Code, Refusal};
pub use event::{Event, EventKind, Severity};
pub use exposure::{Expose, Exposed, OuterAddress};
pub use hindrance::{Hindered, Hindrance, HindranceKind};
pub use ids::{
    EngineName, IdSource, InstanceId, InstanceName, InvalidName, NodeId, OperationId, ProjectName,
    SeededIds, WorkerName, ZoneName,
};
pub use node::{NodePhase, NodeRecord};
pub use observation::{
    BackendNode, EndpointStatus, Observation, Observed, ObservedNode, Worker, WorkerState,
};
pub use operation::{
    AccountChange, Operation, OperationKind, OperationState, OperationStep, ParameterChange,
    StepState,
};
pub use parameters::{
    Applies, InvalidValue, Kind, Parameter, ParameterContext, Place, TABLE as PARAMETERS,
    canonical as canonical_parameter, check_all as check_parameters,
};
pub use password::check_password;
pub use policy::{ElectionPolicy, PlannerPolicy};
pub use secret::{Secret, secret_in_file};
pub use size::{ByteSize, InvalidSize};
pub use slot_move::{MoveLimits, MovePace, OpenSlot, SlotJob, SlotMoveStatus};
pub use slots::{SLOT_COUNT, SlotRange, SlotSet, even_slots};
pub use spec::{
    DeletePolicy, Desired, InstanceSpec, LOCAL_CONTAINER_CLUSTER, STANDARD_STORAGE_CLASS,
    check_container_cluster_name, limits,
};
pub use state::{Condition, InstanceState};
pub use time::{Millis, Timestamp};
pub use users::Users;
