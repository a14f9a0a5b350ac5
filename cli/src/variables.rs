//! Warns of variables that look like ours and are not: a misspelt one must not be ignored silently.

use std::ffi::OsString;

use crate::flags::{self, LOG_VARIABLE};
use crate::problem::shown;

/// A warning for each variable that begins like ours and is not known. Never its value: it may be a
/// secret.
pub(crate) fn warnings(variables: &[(OsString, OsString)]) -> Vec<String> {
    let known = || flags::all().map(|flag| flag.variable).chain([LOG_VARIABLE]);
    let mut unknown: Vec<String> = variables
        .iter()
        .map(|(name, value)| (name.to_string_lossy(), value.to_string_lossy()))
        .filter(|(name, value)| {
            name.to_uppercase().starts_with("RELAY_")
                && !known().any(|known| known == name)
                && !is_kubernetes_own(name, value)
        })
        .map(|(name, _)| name.into_owned())
        .collect();
    unknown.sort();
    let warning = |name: String| {
        let shown = shown(&name);
        match flags::nearest(&name, known()) {
            Some(nearest) => {
                format!(
                    "the variable {shown} is unknown and changes nothing; perhaps {nearest} is meant"
                )
            }
            None => format!("the variable {shown} is unknown and changes nothing"),
        }
    };
    unknown.into_iter().map(warning).collect()
}

/// Kubernetes describes a service called `relay` to every container in variables of its own making.
fn is_kubernetes_own(name: &str, value: &str) -> bool {
    let is_port = || value.starts_with("tcp://") || value.starts_with("udp://");
    name.starts_with("RELAY_SERVICE_")
        || name.starts_with("RELAY_PORT_")
        || (name == "RELAY_PORT" && is_port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_variable_is_named_with_its_nearest_and_without_its_value() {
        let variables = [
            ("PATH", "/bin"),
            ("RELAY_LISTEN", "127.0.0.1:0"),
            ("RELAY_LOG", "debug"),
            ("RELAY_JWT_SECRET", "canary"),
            ("RELAY_XYZZY", "1"),
            ("RELAY_PORT", "9000"),
            ("relay_redis", "redis://h"),
        ];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));

        let warnings = warnings(&variables);

        let words = ["RELAY_JWT_SECRET_FILE", "RELAY_PORT", "RELAY_XYZZY", "RELAY_REDIS"];
        assert_eq!(warnings.len(), words.len(), "{warnings:#?}");
        for (warning, word) in warnings.iter().zip(words) {
            assert!(warning.contains(word) && !warning.contains("canary"), "{warning}");
        }
    }

    #[test]
    fn what_kubernetes_sets_for_a_service_called_relay_is_not_a_slip() {
        let variables = [
            ("RELAY_PORT", "tcp://10.0.0.7:80"),
            ("RELAY_PORT_80_TCP_ADDR", "10.0.0.7"),
            ("RELAY_SERVICE_HOST", "10.0.0.7"),
        ];
        assert!(warnings(&variables.map(|(name, value)| (name.into(), value.into()))).is_empty());
    }
}
