//! What a run consists of, as data.

/// A run from beginning to end, if nobody cancels it.
#[derive(Debug)]
pub(crate) struct Script {
    /// What the user asks.
    pub(crate) ask: &'static str,
    /// The same in a few words.
    pub(crate) task: &'static str,
    pub(crate) steps: &'static [Step],
    /// What was reached, once every step is done.
    pub(crate) summary: &'static str,
}

/// A step of the plan.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) beats: &'static [Beat],
    /// Why the step, and with it the run, comes to nothing.
    pub(crate) fails: Option<&'static str>,
}

/// Something that happens within a step.
#[derive(Debug)]
pub(crate) enum Beat {
    /// The agent writes a paragraph.
    Say(&'static str),
    /// Two sub-agents write at the same time.
    Together([&'static str; 2]),
    /// The agent uses a tool.
    Use(Tool),
    /// The step reports to the plan.
    Report(&'static str),
    /// The agent asks whether it may, and stops where it may not.
    MayI(PermissionAsked),
    /// The agent has spent its budget, and asks whether to go on.
    GoOn(Spent),
}

/// Something that the agent does only if it may.
#[derive(Debug)]
pub(crate) struct PermissionAsked {
    pub(crate) tool: &'static str,
    pub(crate) command: &'static str,
    /// What that does, in words for a person.
    pub(crate) description: &'static str,
}

/// A budget that is spent.
#[derive(Debug)]
pub(crate) struct Spent {
    pub(crate) tokens: u64,
    /// What for, in words for a person.
    pub(crate) description: &'static str,
}

/// A use of a tool.
#[derive(Debug)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    /// Why, in words for a person.
    pub(crate) intent: &'static str,
    /// JSON.
    pub(crate) input: &'static str,
    pub(crate) takes_ms: u64,
    pub(crate) result: &'static str,
    pub(crate) is_error: bool,
}

impl Step {
    /// A step that succeeds.
    pub(crate) const fn new(name: &'static str, beats: &'static [Beat]) -> Self {
        Self { name, beats, fails: None }
    }
}
