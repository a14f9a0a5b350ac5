//! What the demo agent works on, in this order, again and again.

mod checkout_latency;
mod failing_deployment;
mod flaky_tests;
mod invoice_migration;
mod release_notes;

use crate::script::Script;

pub(crate) const ALL: &[&Script] = &[
    &flaky_tests::SCRIPT,
    &release_notes::SCRIPT,
    &failing_deployment::SCRIPT,
    &checkout_latency::SCRIPT,
    &invoice_migration::SCRIPT,
];

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::ALL;
    use crate::script::{Beat, Tool};

    fn tools() -> impl Iterator<Item = &'static Tool> {
        let beats = ALL.iter().flat_map(|script| script.steps).flat_map(|step| step.beats);
        beats.filter_map(|beat| if let Beat::Use(tool) = beat { Some(tool) } else { None })
    }

    #[test]
    fn every_tool_is_given_a_json_object() {
        for tool in tools() {
            let input: Result<Value, _> = serde_json::from_str(tool.input);
            assert!(input.is_ok_and(|input| input.is_object()), "{}", tool.input);
        }
    }

    #[test]
    fn the_showcase_shows_what_it_should() {
        let together = |beat: &Beat| matches!(beat, Beat::Together(_));
        let steps = || ALL.iter().flat_map(|script| script.steps);
        assert!(steps().any(|step| step.beats.iter().any(together)), "turns in parallel");
        assert!(tools().any(|tool| tool.is_error), "a tool that fails and a run that recovers");
        assert_eq!(steps().filter(|step| step.fails.is_some()).count(), 1, "one honest failure");
        for step in steps() {
            assert!(!step.beats.is_empty(), "{}", step.name);
        }
    }
}
