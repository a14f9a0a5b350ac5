//! What a token allows. Deny by default.

use serde::Deserialize;
use thiserror::Error;

use crate::Channel;
use crate::limits::GRANT_PATTERNS_MAX;

/// What the bearer may do, as lists of patterns: exact, or ending in `*`.
///
/// ```
/// let grant: protocol::Grant =
///     serde_json::from_str(r#"{"subscribe": ["session:42", "project:*"]}"#).unwrap();
/// assert!(grant.may_subscribe(&"project:7".parse().unwrap()));
/// assert!(!grant.may_subscribe(&"session:421".parse().unwrap()));
/// assert!(!grant.may_command(&"session:42".parse().unwrap()));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Grant {
    subscribe: Vec<String>,
    command: Vec<String>,
    request: Vec<String>,
    publish: Vec<String>,
    serve: Vec<String>,
    admin: bool,
}

/// The grant is malformed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GrantError {
    /// Too many patterns.
    #[error("the grant's `{0}` has more than {GRANT_PATTERNS_MAX} patterns")]
    Long(&'static str),
    /// A pattern that would not mean what it seems to.
    #[error("the pattern `{0}` is neither exact nor ends in its only `*`")]
    Pattern(String),
}

impl Grant {
    /// Everything: what a relay without a key gives.
    pub fn everything() -> Self {
        let all = || vec!["*".to_owned()];
        Self {
            subscribe: all(),
            command: all(),
            request: all(),
            publish: all(),
            serve: all(),
            admin: true,
        }
    }

    /// Whether every pattern means what it seems to.
    ///
    /// # Errors
    /// [`GrantError`] names the list or the pattern.
    pub fn check(&self) -> Result<(), GrantError> {
        let lists = [
            ("subscribe", &self.subscribe),
            ("command", &self.command),
            ("request", &self.request),
            ("publish", &self.publish),
            ("serve", &self.serve),
        ];
        for (name, patterns) in lists {
            if patterns.len() > GRANT_PATTERNS_MAX {
                return Err(GrantError::Long(name));
            }
            if let Some(odd) = patterns.iter().find(|p| p.is_empty() || misplaced_star(p)) {
                return Err(GrantError::Pattern(crate::channel::shortened(odd)));
            }
        }
        Ok(())
    }

    /// May the bearer see the events of `channel`?
    pub fn may_subscribe(&self, channel: &Channel) -> bool {
        allows(&self.subscribe, channel.as_str())
    }

    /// May the bearer send commands to the agent behind `channel`?
    pub fn may_command(&self, channel: &Channel) -> bool {
        allows(&self.command, channel.as_str())
    }

    /// May the bearer make requests of `method`?
    pub fn may_request(&self, method: &str) -> bool {
        allows(&self.request, method)
    }

    /// May the bearer be the agent, or a worker, behind `channel`?
    pub fn may_serve(&self, channel: &Channel) -> bool {
        allows(&self.serve, channel.as_str())
    }

    /// May the bearer publish events on `channel`?
    pub fn may_publish(&self, channel: &Channel) -> bool {
        allows(&self.publish, channel.as_str())
    }

    /// May the bearer see what concerns the whole deployment?
    pub fn may_administer(&self) -> bool {
        self.admin
    }
}

fn misplaced_star(pattern: &str) -> bool {
    pattern.find('*').is_some_and(|at| at + 1 != pattern.len())
}

fn allows(patterns: &[String], name: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    })
}
