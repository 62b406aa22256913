//! How often the same order is given. A step whose effect is not seen yet is planned again with
//! every piece of news; what it orders is given again too, since an accepted order proves nothing,
//! but not in a hot loop, and less and less often while it is refused.

use larder_model::plan::{PlannedStep, Step};
use larder_model::{Millis, OperationId, Timestamp};

/// Pause after the first order; doubles with each further one.
const FIRST: Millis = Millis::secs(1);
/// The longest pause while the order is accepted: a coordinated failover is over by then.
const LONGEST: Millis = Millis::secs(5);
/// The longest pause while it is refused.
const LONGEST_REFUSED: Millis = Millis::secs(10);

/// The orders given for one instance.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Whose steps they are: another operation begins anew.
    operation: Option<OperationId>,
    given: Vec<Given>,
}

#[derive(Debug)]
struct Given {
    step: Step,
    /// How often in a row.
    times: u32,
    /// How often in a row it was refused, up to now.
    refused: u32,
    at: Timestamp,
    /// What people were told of the refusal.
    told: Option<String>,
}

impl Given {
    fn rests(&self, now: Timestamp) -> bool {
        let longest = if self.refused > 0 { LONGEST_REFUSED } else { LONGEST };
        let doubled = FIRST.0 << self.times.saturating_sub(1).min(10);
        // A clock that was set back ends the rest.
        now >= self.at && now.since(self.at) < Millis(doubled.min(longest.0))
    }
}

impl Pace {
    /// The steps whose turn it is. Those that were refused hold up what comes after them for the
    /// same node. What is not planned any more is forgotten once its pause is over, so that a plan
    /// that goes back and forth gives no order more often.
    pub(crate) fn due(
        &mut self,
        steps: &[PlannedStep],
        operation: Option<&OperationId>,
        now: Timestamp,
    ) -> Vec<PlannedStep> {
        if self.operation.as_ref() != operation {
            self.operation = operation.cloned();
            self.given.clear();
        }
        self.given.retain(|given| {
            given.rests(now) || steps.iter().any(|planned| planned.step == given.step)
        });
        let mut held_up = Vec::new();
        let mut due = Vec::new();
        for planned in steps {
            let node = planned.step.node();
            if node.is_some() && held_up.contains(&node) {
                continue;
            }
            match self.given.iter().find(|given| given.step == planned.step) {
                Some(given) if given.rests(now) => {
                    if given.refused > 0 {
                        held_up.push(node);
                    }
                }
                _ => due.push(planned.clone()),
            }
        }
        due
    }

    /// The step was taken; that is not to say that it has had its effect.
    pub(crate) fn taken(&mut self, step: &Step, now: Timestamp) {
        if !has_its_time(step) {
            self.given.retain(|given| given.step != *step);
            return;
        }
        let given = self.given_mut(step);
        given.refused = 0;
        given.told = None;
        given.times += 1;
        given.at = now;
    }

    /// The step was refused with these words. Answers whether people are to be told: once, and of
    /// what an agent refuses (`may_pass`) only when it does so again, because its own news may have
    /// been on their way when it was asked.
    pub(crate) fn refused(
        &mut self,
        step: &Step,
        words: &str,
        may_pass: bool,
        now: Timestamp,
    ) -> bool {
        let given = self.given_mut(step);
        if given.refused == 0 {
            given.times = 0;
        }
        given.refused += 1;
        given.times += 1;
        given.at = now;
        let news = (given.refused > 1 || !may_pass) && given.told.as_deref() != Some(words);
        if news {
            given.told = Some(words.to_owned());
        }
        news
    }

    fn given_mut(&mut self, step: &Step) -> &mut Given {
        let at = match self.given.iter().position(|given| given.step == *step) {
            Some(at) => at,
            None => {
                self.given.push(Given {
                    step: step.clone(),
                    times: 0,
                    refused: 0,
                    at: Timestamp(0),
                    told: None,
                });
                self.given.len() - 1
            }
        };
        &mut self.given[at]
    }
}

/// Orders that take a while to have their effect, and that disturb clients when they are given
/// again meanwhile.
fn has_its_time(step: &Step) -> bool {
    matches!(
        step,
        Step::HandOver { .. }
            | Step::TakeLease { .. }
            | Step::FailOverShard { .. }
            | Step::RestartServer { .. }
    )
}

#[cfg(test)]
mod tests {
    use larder_model::{InstanceId, NodeId};

    use super::*;

    fn planned(step: Step) -> PlannedStep {
        let instance = InstanceId::new("i-1").unwrap();
        PlannedStep { instance, generation: 1, reason: "asked for".to_owned(), step }
    }

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn hand_over() -> Vec<PlannedStep> {
        vec![planned(Step::HandOver { holder: id("n1"), to: Some(id("n2")) })]
    }

    /// When a step that is planned every 20 ms for `seconds` is ordered.
    fn ordered(seconds: i64, refused: bool) -> Vec<i64> {
        let (mut pace, plan, mut at) = (Pace::default(), hand_over(), Vec::new());
        for ms in (0..seconds * 1000).step_by(20) {
            let now = Timestamp(ms);
            for planned in pace.due(&plan, None, now) {
                at.push(ms / 1000);
                if refused {
                    pace.refused(&planned.step, "no", true, now);
                } else {
                    pace.taken(&planned.step, now);
                }
            }
        }
        at
    }

    #[test]
    fn a_refused_order_is_given_again_less_and_less_often() {
        assert_eq!(ordered(100, true), [0, 1, 3, 7, 15, 25, 35, 45, 55, 65, 75, 85, 95]);
    }

    #[test]
    fn an_order_on_its_way_is_not_given_again_at_once() {
        assert_eq!(ordered(20, false), [0, 1, 3, 7, 12, 17]);
    }

    #[test]
    fn a_refusal_that_passes_is_told_to_nobody_and_one_that_stays_is_told_once() {
        let (mut pace, plan) = (Pace::default(), hand_over());
        let step = &plan[0].step;
        assert!(!pace.refused(step, "no", true, Timestamp(0)));
        // Seen to be done: planned no more, and forgotten after its pause.
        assert!(pace.due(&[], None, Timestamp(1_500)).is_empty());
        let told: Vec<bool> =
            (2..6).map(|n| pace.refused(step, "no", true, Timestamp(n * 40_000))).collect();
        assert_eq!(told, [false, true, false, false]);
        assert!(pace.refused(step, "never", true, Timestamp(240_000)), "other words are news");
        assert!(pace.refused(&Step::MarkInitialized, "no room", false, Timestamp(0)));
    }

    #[test]
    fn a_plan_that_goes_back_and_forth_orders_no_faster() {
        let (mut pace, plan) = (Pace::default(), hand_over());
        pace.refused(&plan[0].step, "no", true, Timestamp(0));
        assert!(pace.due(&[], None, Timestamp(10)).is_empty());
        assert!(pace.due(&plan, None, Timestamp(20)).is_empty());
        assert_eq!(pace.due(&plan, None, Timestamp(1_000)).len(), 1);
    }

    #[test]
    fn another_operation_begins_anew() {
        let (mut pace, plan) = (Pace::default(), hand_over());
        let operation = OperationId::new("o-1").unwrap();
        pace.taken(&plan[0].step, Timestamp(0));
        assert!(pace.due(&plan, None, Timestamp(10)).is_empty());
        assert_eq!(pace.due(&plan, Some(&operation), Timestamp(20)).len(), 1);
    }

    #[test]
    fn a_refused_step_holds_up_its_own_node_only() {
        let step = |node| planned(Step::ConfigureNode { node: id(node) });
        let after = |node| planned(Step::StartEmpty { node: id(node) });
        let plan = [step("n1"), after("n1"), step("n2"), after("n2")];
        let mut pace = Pace::default();
        pace.refused(&plan[0].step, "no", true, Timestamp(0));
        assert_eq!(pace.due(&plan, None, Timestamp(10)), [step("n2"), after("n2")]);
    }

    #[test]
    fn a_clock_that_is_set_back_holds_nothing_up() {
        let (mut pace, plan) = (Pace::default(), hand_over());
        pace.taken(&plan[0].step, Timestamp(1_000_000));
        assert_eq!(pace.due(&plan, None, Timestamp(0)).len(), 1);
    }
}
