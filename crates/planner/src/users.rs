//! The tenant's users and passwords, at every server that runs, and the end of a former password.
//! Servers that do not run read them from their files when they start.

use larder_model::plan::{OperationReport, Step};
use larder_model::{NodeRecord, OperationKind};

use crate::draft::Draft;
use crate::op_steps::{self, Phase};
use crate::view::View;

pub(crate) fn users(view: &View<'_>, draft: &mut Draft<'_>) {
    let revision = view.desired.users_revision;
    for record in serving(view).filter(|record| !has_them(view, record)) {
        let step = Step::SetUsers { node: record.id.clone(), revision };
        draft.step(step, "users or passwords have changed");
    }
    let changing = view.operation().is_some_and(|operation| {
        matches!(
            operation.kind,
            OperationKind::SetPassword { .. } | OperationKind::ChangeAccount { .. }
        )
    });
    let is_over = view.desired.former_password_until.is_some_and(|until| view.now >= until);
    if is_over && !changing {
        draft.step(Step::DropFormerPassword, "the time in which both were valid is over");
    }
}

/// Every node that takes clients: those on their way out too.
fn serving<'v>(view: &'v View<'_>) -> impl Iterator<Item = &'v NodeRecord> {
    view.wanted.iter().chain(&view.leaving).copied().filter(|record| view.serves(&record.id))
}

/// By the word of the node's agent. One that says nothing of users is of a version that knows only
/// those of the creation.
fn has_them(view: &View<'_>, record: &NodeRecord) -> bool {
    let known = view.agent(&record.id).and_then(|status| status.server.users_revision);
    known.unwrap_or(0) >= view.desired.users_revision
}

/// `what`: that which servers are told, in words after their count.
pub(crate) fn report(view: &View<'_>, draft: &Draft<'_>, what: &str) -> OperationReport {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let all = count(serving(view).count());
    let told = count(serving(view).filter(|record| has_them(view, record)).count());
    let mut phase = Phase::counted("tell-servers", told, all, what);
    // With nobody serving nobody can log in with it.
    phase.done &= all > 0;
    let done = phase.done && !draft.has_steps();
    op_steps::report(vec![phase], done, draft)
}
