//! The events that mean something to the relay and to every page, each as a type.
//!
//! `new` takes the required fields; optional ones are set by methods. The names on the wire are
//! those of `PROTOCOL.md`, for example `toolUseId`. Any other event goes through
//! [`Publisher::publish`](crate::Publisher::publish) with a name of your own. Text deltas have a
//! method of their own, [`text_delta`](crate::Publisher::text_delta), because they are batched; so
//! have the events of an agent's life, because they go to two channels
//! ([`Agent::spawned`](crate::Agent::spawned)). How a run ended, `complete`, is said by the [`Run`](crate::Run).
//!
//! ```
//! use publisher_sdk::vocabulary::{Event, ToolStart};
//!
//! let event = ToolStart::new("Bash", "use-1", serde_json::json!({"command": "ls"})).turn_id("t1");
//! assert_eq!(ToolStart::NAME, "tool_start");
//! assert_eq!(
//!     serde_json::to_value(&event).unwrap(),
//!     serde_json::json!({
//!         "toolName": "Bash", "toolUseId": "use-1", "toolInput": {"command": "ls"}, "turnId": "t1"
//!     }),
//! );
//! ```

use serde::Serialize;
use serde_json::Value;

/// An event with a fixed name.
pub trait Event: Serialize {
    /// The name on the wire.
    const NAME: &'static str;
}

/// Declares an event: its name, its required fields (with what `new` takes), its optional ones.
macro_rules! event {
    (
        $(#[doc = $doc:literal])+
        $name:literal $event:ident
        { $($(#[doc = $field_doc:literal])+ $key:literal $field:ident: $kind:ty = $given:ty,)* }
        $(optional {
            $(
                $(#[doc = $option_doc:literal])+
                $option_key:literal $option:ident: $option_kind:ty = $option_given:ty,
            )+
        })?
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[non_exhaustive]
        pub struct $event {
            $($(#[doc = $field_doc])+ #[serde(rename = $key)] pub $field: $kind,)*
            $($(
                $(#[doc = $option_doc])+
                #[serde(rename = $option_key, skip_serializing_if = "Option::is_none")]
                pub $option: Option<$option_kind>,
            )+)?
        }

        impl $event {
            /// The event with its required fields.
            pub fn new($($field: $given),*) -> Self {
                Self { $($field: $field.into(),)* $($($option: None,)+)? }
            }

            $($(
                $(#[doc = $option_doc])+
                pub fn $option(self, $option: $option_given) -> Self {
                    Self { $option: Some($option.into()), ..self }
                }
            )+)?
        }

        impl Event for $event {
            const NAME: &'static str = $name;
        }
    };
}

/// Where a plan's step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// It has not begun.
    Pending,
    /// It is being worked on.
    Running,
    /// It is done.
    Completed,
    /// It could not be done.
    Failed,
    /// It was given up because somebody cancelled.
    Cancelled,
}

/// What has become of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandState {
    /// The agent has it.
    Delivered,
    /// The agent has done it.
    Applied,
    /// The agent will not do it.
    Rejected,
    /// It came too late.
    Expired,
}

/// What changed for everyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeType {
    /// The configuration.
    Config,
    /// The look.
    Theme,
}

// On sessions.

event! {
    /// On a session: a turn's whole text, after its deltas.
    "text_complete" TextComplete {
        /// The text.
        "text" text: String = impl Into<String>,
    } optional {
        /// More of the answer follows, after a tool for example.
        "isIntermediate" is_intermediate: bool = bool,
        /// Which turn.
        "turnId" turn_id: String = impl Into<String>,
    }
}

event! {
    /// On a session: a tool begins.
    "tool_start" ToolStart {
        /// Which tool.
        "toolName" tool_name: String = impl Into<String>,
        /// This use of it; the result carries the same id.
        "toolUseId" tool_use_id: String = impl Into<String>,
        /// What it is given.
        "toolInput" tool_input: Value = impl Into<Value>,
    } optional {
        /// Why, in words for a person.
        "toolIntent" tool_intent: String = impl Into<String>,
        /// The tool's name for a person.
        "toolDisplayName" tool_display_name: String = impl Into<String>,
        /// Which turn.
        "turnId" turn_id: String = impl Into<String>,
    }
}

event! {
    /// On a session: a tool's result.
    "tool_result" ToolResult {
        /// Which use of the tool.
        "toolUseId" tool_use_id: String = impl Into<String>,
        /// Which tool.
        "toolName" tool_name: String = impl Into<String>,
        /// What it gave.
        "result" result: Value = impl Into<Value>,
    } optional {
        /// It failed; the result says why.
        "isError" is_error: bool = bool,
        /// Which turn.
        "turnId" turn_id: String = impl Into<String>,
    }
}

event! {
    /// On a session: something went wrong that a person should know of.
    "error" ErrorEvent {
        /// What.
        "error" error: Value = impl Into<Value>,
    } optional {
        /// Which run.
        "runId" run_id: String = impl Into<String>,
    }
}

// On plans.

event! {
    /// On a plan: a step is somewhere else now.
    "step_status" StepStatus {
        /// Which step, from 0.
        "step_index" step_index: u64 = u64,
        /// Its name.
        "step_name" step_name: String = impl Into<String>,
        /// Where it stands.
        "status" status: StepState = StepState,
    } optional {
        /// What it gave.
        "output" output: Value = impl Into<Value>,
        /// Why it failed.
        "error" error: String = impl Into<String>,
    }
}

event! {
    /// On a plan: a step says something while it runs.
    "step_output" StepOutput {
        /// Which step, from 0.
        "step_index" step_index: u64 = u64,
        /// What it says.
        "output" output: Value = impl Into<Value>,
    }
}

event! {
    /// On a plan: the plan as a whole, when it is made or changed.
    "execution_update" ExecutionUpdate {
        /// Its steps, in order: each an object with a `name` and a `status`.
        "steps" steps: Vec<Value> = Vec<Value>,
    } optional {
        /// Which run works on it.
        "runId" run_id: String = impl Into<String>,
    }
}

event! {
    /// On a plan: all of it is done.
    "plan_completed" PlanCompleted {
        /// What was reached.
        "summary" summary: String = impl Into<String>,
    } optional {
        /// Which run worked on it.
        "runId" run_id: String = impl Into<String>,
    }
}

event! {
    /// On a plan: it will not be done.
    "plan_failed" PlanFailed {
        /// Why.
        "error" error: String = impl Into<String>,
    } optional {
        /// Which run worked on it.
        "runId" run_id: String = impl Into<String>,
    }
}

// On agents.

event! {
    /// On an agent: its status, in one word.
    "agent.status_changed" StatusChanged {
        /// For example `working`.
        "status" status: String = impl Into<String>,
    } optional {
        /// Since when, Unix milliseconds.
        "since" since: u64 = u64,
    }
}

event! {
    /// On an agent: how much of a budget is spent.
    "budget_update" BudgetUpdate {
        /// Whose budget.
        "request_id" request_id: String = impl Into<String>,
        /// Tokens spent.
        "tokens_used" tokens_used: u64 = u64,
        /// Tokens allowed.
        "budget_total" budget_total: u64 = u64,
    } optional {
        /// The same as a part of a hundred.
        "percentage" percentage: f64 = f64,
    }
}

event! {
    /// On an agent: most of a budget is spent.
    "budget_warning" BudgetWarning {
        /// Whose budget.
        "request_id" request_id: String = impl Into<String>,
        /// Tokens spent.
        "tokens_used" tokens_used: u64 = u64,
        /// Tokens allowed.
        "budget_total" budget_total: u64 = u64,
    }
}

// On `global:everyone` and on any channel.

event! {
    /// On `global:everyone`: pages should fetch something anew.
    "config_changed" ConfigChanged {
        /// What.
        "changeType" change_type: ChangeType = ChangeType,
    }
}

event! {
    /// On the channel that a command was sent to: what has become of it.
    "command_status" CommandStatus {
        /// Which command.
        "command_id" command_id: String = impl Into<String>,
        /// What has become of it.
        "status" status: CommandState = CommandState,
    } optional {
        /// In words for a person.
        "detail" detail: String = impl Into<String>,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The field names are a contract with every page.
    #[test]
    fn the_names_on_the_wire_are_those_of_the_protocol() {
        fn check(event: &impl Event, expected: Value) {
            assert_eq!(serde_json::to_value(event).unwrap(), expected);
        }
        check(
            &TextComplete::new("Done").is_intermediate(true).turn_id("t1"),
            json!({"text": "Done", "isIntermediate": true, "turnId": "t1"}),
        );
        check(
            &ToolStart::new("Bash", "u", json!([1])).tool_intent("why").tool_display_name("Shell"),
            json!({"toolName": "Bash", "toolUseId": "u", "toolInput": [1], "toolIntent": "why",
                "toolDisplayName": "Shell"}),
        );
        check(
            &ToolResult::new("u", "Bash", "out").is_error(false).turn_id("t1"),
            json!({"toolUseId": "u", "toolName": "Bash", "result": "out", "isError": false,
                "turnId": "t1"}),
        );
        check(&ErrorEvent::new("boom"), json!({"error": "boom"}));
        check(
            &StepStatus::new(2, "Build", StepState::Failed).output("o").error("e"),
            json!({"step_index": 2, "step_name": "Build", "status": "failed", "output": "o",
                "error": "e"}),
        );
        check(&StepOutput::new(0, "x"), json!({"step_index": 0, "output": "x"}));
        check(
            &ExecutionUpdate::new(vec![json!({"name": "a"})]).run_id("r"),
            json!({"steps": [{"name": "a"}], "runId": "r"}),
        );
        check(&PlanCompleted::new("s"), json!({"summary": "s"}));
        check(&PlanFailed::new("e"), json!({"error": "e"}));
        check(&StatusChanged::new("working"), json!({"status": "working"}));
        check(
            &BudgetUpdate::new("q", 1, 4).percentage(25.0),
            json!({"request_id": "q", "tokens_used": 1, "budget_total": 4, "percentage": 25.0}),
        );
        check(&ConfigChanged::new(ChangeType::Theme), json!({"changeType": "theme"}));
        check(
            &CommandStatus::new("c", CommandState::Rejected).detail("why"),
            json!({"command_id": "c", "status": "rejected", "detail": "why"}),
        );
    }
}
