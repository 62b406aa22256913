//! Lists of instances: filtered, searched, sorted.

use larder_model::{Architecture, InstanceState, ProjectName};

use crate::error::Doing;
use crate::instances::{InstanceRow, instance_of};
use crate::{Result, Store};

/// Which instances to read. Everything unset: all, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceFilter {
    pub project: Option<ProjectName>,
    pub state: Option<InstanceState>,
    pub architecture: Option<Architecture>,
    /// Part of name, description or a tag (`key=value`); case does not matter.
    pub search: Option<String>,
    pub sort: InstanceSort,
    /// At most this many, never more than [`LIMIT_MAX`](crate::LIMIT_MAX).
    pub limit: Option<u32>,
}

/// The order of a list. Equals are in the order of their names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InstanceSort {
    #[default]
    Name,
    /// Newest first.
    CreatedAt,
    State,
    Architecture,
    Engine,
    /// Largest first.
    Memory,
}

impl InstanceSort {
    pub const ALL: [Self; 6] =
        [Self::Name, Self::CreatedAt, Self::State, Self::Architecture, Self::Engine, Self::Memory];

    /// The word for it, that of the field it sorts by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::CreatedAt => "created_at",
            Self::State => "state",
            Self::Architecture => "architecture",
            Self::Engine => "engine",
            Self::Memory => "memory_bytes",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }

    fn sql(self) -> &'static str {
        macro_rules! list_by {
            ($order:literal) => {
                concat!(
                    "SELECT * FROM instances
                     WHERE ($1 IS NULL OR project = $1) AND ($2 IS NULL OR state = $2)
                       AND ($3 IS NULL OR architecture = $3)
                       AND ($4 IS NULL OR search_text LIKE $4 ESCAPE '\\')
                     ORDER BY ",
                    $order,
                    " LIMIT $5"
                )
            };
        }
        match self {
            Self::Name => list_by!("name, project"),
            Self::CreatedAt => list_by!("created_at DESC, name, project"),
            Self::State => list_by!("state, name, project"),
            Self::Architecture => list_by!("architecture, name, project"),
            Self::Engine => list_by!("engine, name, project"),
            Self::Memory => list_by!("memory_bytes DESC, name, project"),
        }
    }
}

impl Store {
    /// Reads the instances that the filter lets through.
    pub async fn instance_list(&self, filter: &InstanceFilter) -> Result<Vec<InstanceRow>> {
        let doing = "listing instances";
        let mut tx = self.read(doing).await?;
        let rows = sqlx::query(filter.sort.sql())
            .bind(filter.project.as_ref().map(ProjectName::as_str))
            .bind(filter.state.map(InstanceState::as_str))
            .bind(filter.architecture.map(Architecture::as_str))
            .bind(filter.search.as_deref().map(pattern))
            .bind(crate::limit::of_list(filter.limit))
            .fetch_all(&mut *tx)
            .await
            .doing(doing)?;
        rows.iter().map(instance_of).collect()
    }
}

/// A LIKE pattern for the text anywhere, with LIKE's own signs taken literally.
fn pattern(search: &str) -> String {
    let mut pattern = String::from("%");
    for c in search.to_lowercase().chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    pattern
}
