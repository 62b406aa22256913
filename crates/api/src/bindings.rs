//! Bindings of container clusters: one change at a time, each whole or not at all. Used by the
//! routes, and for the cluster that a configuration names.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use larder_api_types::{BindContainerCluster, SetContainerCluster};
use larder_model::{Code, check_container_cluster_name};
use larder_store::{ContainerClusterRow, Record, RecordOutcome, Store};
use serde_json::{Value, json};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::clock::now;
use crate::error::ApiError;
use crate::permission::{Action, Object};
use crate::state::Binder;

/// For everything up to the decision, the wait for other changes included. Who asks waits for 30 s
/// and then asks again.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a container cluster is to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// None of this name is bound yet.
    First,
    /// One is, and what is left out stays as it was.
    Again,
    /// Whether one is or not, as a configuration says: what it leaves out has its default, also
    /// where it was something else before.
    AsConfigured,
}

/// Who wants it, for the records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct By {
    pub user: String,
    /// Address that the request came from, or what else it was.
    pub from: String,
}

impl By {
    fn record(&self, action: Action, name: &str, detail: Value) -> Record {
        Record {
            at: now(),
            user: self.user.clone(),
            from: self.from.clone(),
            action: action.as_str().to_owned(),
            object: Object::ContainerCluster(name.to_owned()).to_string(),
            instance: None,
            detail,
            outcome: RecordOutcome::Accepted,
        }
    }
}

/// The bindings: what the store has of them, and what is used. Cheap to clone.
#[derive(Clone)]
pub struct Bindings {
    store: Store,
    binder: Arc<dyn Binder>,
    /// A binding is read, changed and kept by one at a time: two first ones of a name would draw
    /// two owners, and two changes would lose one of each other's. One for each name: a container
    /// cluster that does not answer keeps nobody from another one.
    turns: Arc<std::sync::Mutex<HashMap<String, Arc<Mutex<()>>>>>,
    patience: Duration,
}

impl Bindings {
    pub fn new(store: Store, binder: Arc<dyn Binder>) -> Self {
        Self { store, binder, turns: Arc::default(), patience: PATIENCE }
    }

    /// Waits for so long, and not 20 s, for a container cluster to say what it is.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    pub(crate) fn binder(&self) -> &dyn Binder {
        &*self.binder
    }

    /// Whether the store has a binding of this name that is used.
    pub fn is_in_use(&self, name: &str) -> bool {
        self.binder.is_in_use(name)
    }

    /// Binds a container cluster. Answers whether anything has changed: one that is bound as it is
    /// configured, and in use, is left alone. Who stops waiting stops it before it is kept, or
    /// not at all.
    ///
    /// # Errors
    /// `invalid-name`; `name-taken` and `not-found` by [`How`]; `timeout`; those of
    /// [`Binder::prepare`]; of the store.
    pub async fn bind(
        &self,
        asked: &BindContainerCluster,
        how: How,
        by: &By,
    ) -> Result<bool, ApiError> {
        check_container_cluster_name(&asked.name)?;
        let name = &asked.name;
        let prepared = async {
            let turn = self.turn(name).lock_owned().await;
            let known = self.known(name).await?;
            match (how, &known) {
                (How::First, Some(_)) => {
                    let detail = format!(
                        "container cluster `{name}` is bound already: choose another name, or \
                         change the binding with `larder container-cluster rebind {name}`"
                    );
                    return Err(ApiError::new(Code::NameTaken, detail).field("name"));
                }
                (How::Again, None) => return Err(missing(name)),
                _ => {}
            }
            let row = self.binder.prepare(asked, known.as_ref(), how).await?;
            Ok((turn, known, row))
        };
        let prepared = tokio::time::timeout(self.patience, prepared).await;
        let (turn, known, row) = prepared.map_err(|_| self.late(name))??;
        let same = |old: &ContainerClusterRow| {
            old.options == row.options && old.credentials == row.credentials
        };
        if how == How::AsConfigured
            && known.as_ref().is_some_and(same)
            && self.binder.is_in_use(name)
        {
            return Ok(false);
        }
        self.keep(turn, row, Action::ContainerClusterBind, by).await?;
        Ok(true)
    }

    /// Changes how a container cluster is used.
    ///
    /// # Errors
    /// `not-found`; `timeout`; those of [`Binder::change`]; of the store.
    pub(crate) async fn set(
        &self,
        name: &str,
        asked: &SetContainerCluster,
        by: &By,
    ) -> Result<(), ApiError> {
        let changed = async {
            let turn = self.turn(name).lock_owned().await;
            let known = self.known(name).await?.ok_or_else(|| missing(name))?;
            Ok::<_, ApiError>((turn, self.binder.change(asked, &known).await?))
        };
        let changed = tokio::time::timeout(self.patience, changed).await;
        let (turn, row) = changed.map_err(|_| self.late(name))??;
        self.keep(turn, row, Action::ContainerClusterSet, by).await
    }

    /// Forgets a binding.
    ///
    /// # Errors
    /// `not-found`; `container-cluster-in-use`; of the store.
    pub(crate) async fn unbind(&self, name: &str, by: &By) -> Result<(), ApiError> {
        let turn = self.turn(name).lock_owned();
        let turn = tokio::time::timeout(self.patience, turn).await.map_err(|_| self.late(name))?;
        let record = by.record(Action::ContainerClusterUnbind, name, json!({}));
        let (all, name) = (self.clone(), name.to_owned());
        whole(async move {
            let _turn = turn;
            match all.store.container_cluster_unbind(&name, &record).await {
                Err(error) if error.is_not_found() => return Err(missing(&name)),
                other => other?,
            }
            all.binder.unbound(&name);
            Ok(())
        })
        .await
    }

    /// Says of a worker that it is lost, and records that it was said.
    ///
    /// # Errors
    /// Those of [`Binder::confirm_lost`]; of the store.
    pub(crate) async fn confirm_lost(
        &self,
        name: &str,
        worker: &str,
        by: &By,
    ) -> Result<(), ApiError> {
        let detail = json!({ "worker": worker });
        let record = by.record(Action::ContainerClusterConfirmLost, name, detail);
        let (all, name, worker) = (self.clone(), name.to_owned(), worker.to_owned());
        whole(async move {
            all.binder.confirm_lost(&name, &worker).await?;
            all.store.record_append(&record).await?;
            Ok(())
        })
        .await
    }

    fn turn(&self, name: &str) -> Arc<Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Names that nobody changes just now, or that never were any.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(name.to_owned()).or_default().clone()
    }

    async fn known(&self, name: &str) -> Result<Option<ContainerClusterRow>, ApiError> {
        let all = self.store.container_cluster_list().await?;
        Ok(all.into_iter().find(|row| row.name == name))
    }

    fn late(&self, name: &str) -> ApiError {
        let detail = format!(
            "container cluster `{name}` has not said within {} s what it is, or somebody else is \
             changing its binding: nothing was changed; try again",
            self.patience.as_secs()
        );
        ApiError::new(Code::Timeout, detail)
    }

    /// Keeps the binding, and uses it as it is kept.
    async fn keep(
        &self,
        turn: OwnedMutexGuard<()>,
        row: ContainerClusterRow,
        action: Action,
        by: &By,
    ) -> Result<(), ApiError> {
        let record = by.record(action, &row.name, json!({ "options": row.options }));
        let all = self.clone();
        whole(async move {
            let _turn = turn;
            let kept = all.store.container_cluster_bind(&row, &record).await?;
            all.binder.bound(&kept).await;
            Ok(())
        })
        .await
    }
}

/// Brings it to its end also when who asked for it has gone: what is kept has to be what is used.
async fn whole(
    deed: impl Future<Output = Result<(), ApiError>> + Send + 'static,
) -> Result<(), ApiError> {
    tokio::spawn(deed).await.unwrap_or_else(|error| {
        tracing::error!(%error, "changing a binding broke off");
        Err(ApiError::internal())
    })
}

pub(crate) fn missing(name: &str) -> ApiError {
    ApiError::new(
        Code::NotFound,
        format!(
            "there is no container cluster `{name}`: `larder container-cluster list` shows all"
        ),
    )
}
