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
    /// What was planned when something was planned last.
    planned: Vec<Step>,
}

/// What is to be done of a plan now.
#[derive(Debug, PartialEq)]
pub(crate) struct Due {
    pub(crate) steps: Vec<PlannedStep>,
    /// The same was planned the time before.
    pub(crate) repeated: bool,
    /// Nothing is due, and that only because what is planned was refused: there is no effect to
    /// be seen soon.
    pub(crate) only_refused: bool,
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
    ) -> Due {
        let planned: Vec<Step> = steps.iter().map(|planned| planned.step.clone()).collect();
        let repeated = !steps.is_empty() && self.planned == planned;
        if !steps.is_empty() {
            self.planned = planned;
        }
        if self.operation.as_ref() != operation {
            self.operation = operation.cloned();
            self.given.clear();
        }
        self.given.retain(|given| {
            given.rests(now) || steps.iter().any(|planned| planned.step == given.step)
        });
        let mut held_up = Vec::new();
        let mut due = Vec::new();
        let mut on_its_way = false;
        for planned in steps {
            let node = planned.step.node();
            if node.is_some() && held_up.contains(&node) {
                continue;
            }
            match self.given.iter().find(|given| given.step == planned.step) {
                Some(given) if given.rests(now) => {
                    if given.refused > 0 {
                        held_up.push(node);
                    } else {
                        on_its_way = true;
                    }
                }
                _ => due.push(planned.clone()),
            }
        }
        let only_refused = !steps.is_empty() && due.is_empty() && !on_its_way;
        Due { steps: due, repeated, only_refused }
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
            for planned in pace.due(&plan, None, now).steps {
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
        assert!(pace.due(&[], None, Timestamp(1_500)).steps.is_empty());
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
        assert!(pace.due(&[], None, Timestamp(10)).steps.is_empty());
        assert!(pace.due(&plan, None, Timestamp(20)).steps.is_empty());
        assert_eq!(pace.due(&plan, None, Timestamp(1_000)).steps.len(), 1);
    }

    #[test]
    fn another_operation_begins_anew() {
        let (mut pace, plan) = (Pace::default(), hand_over());
        let operation = OperationId::new("o-1").unwrap();
        pace.taken(&plan[0].step, Timestamp(0));
        assert!(pace.due(&plan, None, Timestamp(10)).steps.is_empty());
        assert_eq!(pace.due(&plan, Some(&operation), Timestamp(20)).steps.len(), 1);
    }

    #[test]
    fn a_refused_step_holds_up_its_own_node_only() {
        let step = |node| planned(Step::ConfigureNode { node: id(node) });
        let after = |node| planned(Step::StartEmpty { node: id(node) });
        let plan = [step("n1"), after("n1"), step("n2"), after("n2")];
        let mut pace = Pace::default();
        pace.refused(&plan[0].step, "no", true, Timestamp(0));
        assert_eq!(pace.due(&plan, None, Timestamp(10)).steps, [step("n2"), after("n2")]);
    }

    #[test]
    fn only_what_was_refused_has_no_effect_on_its_way() {
        let step = |node| planned(Step::TakeLease { node: id(node) });
        let mut pace = Pace::default();
        let mut rests = |plan: &[PlannedStep], at| {
            let due = pace.due(plan, None, Timestamp(at));
            for planned in &due.steps {
                if planned.step.node() == Some(&id("n1")) {
                    pace.refused(&planned.step, "no", true, Timestamp(at));
                } else {
                    pace.taken(&planned.step, Timestamp(at));
                }
            }
            (due.steps.len(), due.repeated, due.only_refused)
        };
        let after = planned(Step::StartEmpty { node: id("n1") });
        assert_eq!(rests(&[], 0), (0, false, false));
        assert_eq!(rests(&[step("n1")], 0), (1, false, false));
        assert_eq!(rests(&[step("n1")], 10), (0, true, true));
        assert_eq!(rests(&[], 20), (0, false, false));
        assert_eq!(rests(&[step("n1")], 30), (0, true, true));
        assert_eq!(rests(&[step("n1"), after.clone()], 40), (0, false, true));
        assert_eq!(rests(&[step("n1"), after.clone(), step("n2")], 50), (1, false, false));
        assert_eq!(rests(&[step("n1"), after, step("n2")], 60), (0, true, false));
    }

    #[test]
    fn a_clock_that_is_set_back_holds_nothing_up() {
        let (mut pace, plan) = (Pace::default(), hand_over());
        pace.taken(&plan[0].step, Timestamp(1_000_000));
        assert_eq!(pace.due(&plan, None, Timestamp(0)).steps.len(), 1);
    }
}
