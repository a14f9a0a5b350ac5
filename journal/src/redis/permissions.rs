//! Whether this Redis user may run all that is run: asked once per connection, before the first run. A script
//! that is refused in its middle has done half of its work.
//!
//! PROTOCOL.md has the rights that follow from these lists.

use protocol::Channel;
use redis::RedisResult;
use redis::aio::ConnectionLike;

use super::keys::Keys;
use crate::Name;
use crate::state::{Index, Record, RecordKind};

/// A command with its arguments.
type Needed = Vec<String>;

/// What `append.lua` runs.
pub(super) fn of_appends(keys: &Keys, producer: &str) -> Vec<Needed> {
    let name = Name::events(Channel::global_everyone());
    let (stream, notification) = (keys.stream(&name), keys.notification(&name));
    let record = keys.producer_record(&name, producer);
    let settings = keys.settings(name.channel.partition());
    let once = keys.idempotency(&name, producer);
    commands(&[
        &["GETRANGE", &record, "-32", "-1"],
        &["GET", &record],
        &["APPEND", &record, "x"],
        &["SET", &record, "x", "PX", "1"],
        &["GET", &once],
        &["SET", &once, "x", "PX", "1"],
        &["HGET", &settings, "session"],
        &["XADD", &stream, "*", "e", "x"],
        &["XREVRANGE", &stream, "+", "-", "COUNT", "1"],
        &["XRANGE", &stream, "-", "+", "COUNT", "1"],
        &["XLEN", &stream],
        &["XTRIM", &stream, "MAXLEN", "1"],
        &["XDEL", &stream, "1-1"],
        &["DEL", &stream],
        &["PEXPIRE", &stream, "1"],
        &["MEMORY", "USAGE", &stream, "SAMPLES", "0"],
        &["PUBLISH", &notification, "x"],
        &["PUBSUB", "NUMSUB", &notification],
        &["TIME"],
    ])
}

/// What `change.lua` and the scripts beside it run, and the short questions about states.
pub(super) fn of_steps(keys: &Keys) -> Vec<Needed> {
    let channel = Channel::global_everyone();
    let name = Name::commands(channel.clone());
    let record = Record { kind: RecordKind::Lease, channel: channel.clone(), id: "x".into() };
    let (state, index) = (keys.state(&record), keys.index(&channel, &Index::Agents));
    let deadlines = keys.deadlines(channel.partition());
    let settings = keys.settings(channel.partition());
    let [waiting, entries, counts] = keys.waiting(&channel);
    let (stream, notification, address) =
        (keys.stream(&name), keys.notification(&name), keys.probe("x"));
    commands(&[
        &["GET", &state],
        &["SET", &state, "x", "PX", "1"],
        &["DEL", &state],
        &["HLEN", &index],
        &["HKEYS", &index],
        &["HGETALL", &index],
        &["HRANDFIELD", &index, "1"],
        &["HGET", &index, "x"],
        &["HSET", &index, "x", "x"],
        &["HDEL", &index, "x"],
        &["ZCARD", &deadlines],
        &["ZSCORE", &deadlines, "x"],
        &["ZADD", &deadlines, "1", "x"],
        &["ZREM", &deadlines, "x"],
        &["ZREVRANGE", &waiting, "0", "0", "WITHSCORES"],
        &["ZRANGEBYSCORE", &waiting, "0", "1"],
        &["HMGET", &counts, "x"],
        &["HSET", &entries, "x", "x"],
        &["HGET", &settings, "session"],
        &["XADD", &stream, "MAXLEN", "1", "*", "e", "x"],
        &["XREVRANGE", &stream, "+", "-", "COUNT", "1"],
        &["XLEN", &stream],
        &["XTRIM", &stream, "MAXLEN", "1"],
        &["PEXPIRE", &stream, "1"],
        &["MEMORY", "USAGE", &stream, "SAMPLES", "0"],
        &["PUBLISH", &notification, "x"],
        &["PUBLISH", &address, "x"],
        &["TIME"],
    ])
}

/// What an agent runs, all in all.
fn of_agents(keys: &Keys) -> Vec<Needed> {
    let name = Name::events(Channel::global_everyone());
    let (notification, address) = (keys.notification(&name), keys.probe("x"));
    let mut needed = commands(&[
        // The pool asks each connection.
        &["PING"],
        &["UNWATCH"],
        &["EVAL", "return 1", "0"],
        &["EVALSHA", "x", "1", &keys.stream(&name)],
        &["SCRIPT", "LOAD", "return 1"],
        &["SUBSCRIBE", &notification, &address],
        &["UNSUBSCRIBE", &notification],
    ]);
    needed.extend(of_appends(keys, "x"));
    needed.extend(of_steps(keys));
    needed
}

/// What a relay runs: all that agents run, and what it counts, settles and lists.
pub(super) fn of_relays(keys: &Keys) -> Vec<Needed> {
    let channel = Channel::global_everyone();
    let (settings, deadlines) =
        (keys.settings(channel.partition()), keys.deadlines(channel.partition()));
    let (counts, replicas, connections) =
        (keys.counts(&channel), keys.replicas(), keys.connections());
    let mut needed = commands(&[
        &["SET", &keys.written(), "", "PX", "1"],
        &["HMGET", &settings, "session"],
        &["HSET", &settings, "session", "x"],
        &["HGETALL", &counts],
        &["HSET", &counts, "x", "x"],
        &["HDEL", &counts, "x"],
        &["PEXPIRE", &counts, "1"],
        &["ZADD", &replicas, "1", "x"],
        &["ZREM", &replicas, "x"],
        &["ZRANGEBYSCORE", &replicas, "0", "1"],
        &["HGET", &connections, "x"],
        &["HSET", &connections, "x", "x"],
        &["HDEL", &connections, "x"],
        &["ZRANGE", &deadlines, "0", "-1"],
        &["HSCAN", &keys.index(&channel, &Index::Agents), "0"],
    ]);
    needed.extend(of_agents(keys));
    needed
}

fn commands(commands: &[&[&str]]) -> Vec<Needed> {
    commands.iter().map(|command| command.iter().map(|word| (*word).to_owned()).collect()).collect()
}

/// Why the user may not; `None` where it may. A server that has another problem reports it when it is asked to run
/// the script.
///
/// # Errors
/// The connection broke, or the user may not even ask.
pub(super) async fn missing(
    connection: &mut impl ConnectionLike,
    needed: &[Needed],
) -> RedisResult<Option<String>> {
    let mut asked = redis::cmd("EVAL");
    asked.arg(include_str!("permissions.lua")).arg(0);
    for command in needed {
        asked.arg(serde_json::to_string(command).expect("texts are plain data"));
    }
    match asked.query_async::<String>(connection).await {
        Ok(denied) if denied.is_empty() => Ok(None),
        Ok(denied) => Ok(Some(format!("its user may not run {denied} on the keys of the relay"))),
        Err(error) => match error.code() {
            None | Some("NOPERM") => Err(error),
            Some(_) => Ok(None),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// As rules of Redis' access control name them.
    fn names(needed: &[Needed]) -> BTreeSet<String> {
        let has_part = |name: &str| ["MEMORY", "PUBSUB", "SCRIPT"].contains(&name);
        let name = |words: &Needed| match has_part(&words[0]) {
            true => format!("{}|{}", words[0], words[1]),
            false => words[0].clone(),
        };
        needed.iter().map(|words| name(words).to_lowercase()).collect()
    }

    #[test]
    fn every_command_of_every_script_is_asked_for() {
        let keys = Keys::new("relay", 0);
        let asked = [
            (of_appends(&keys, "x"), vec![include_str!("append.lua")]),
            (
                of_steps(&keys),
                vec![
                    include_str!("change.lua"),
                    include_str!("snapshot.lua"),
                    include_str!("live.lua"),
                    include_str!("waiting.lua"),
                    include_str!("renew.lua"),
                    include_str!("approvals.lua"),
                    include_str!("places.lua"),
                    include_str!("forget_deadline.lua"),
                ],
            ),
            (
                of_relays(&keys),
                vec![
                    include_str!("read.lua"),
                    include_str!("heads.lua"),
                    include_str!("count.lua"),
                    include_str!("counts.lua"),
                    include_str!("replicas.lua"),
                ],
            ),
        ];
        let mut scripts = 0;
        for (needed, texts) in asked {
            let needed = names(&needed);
            for text in texts {
                scripts += 1;
                let calls = text.split("call('").skip(1).map(|rest| {
                    let words: Vec<&str> = rest.split('\'').take(3).collect();
                    match words[..] {
                        [name @ ("MEMORY" | "PUBSUB"), _, part] => format!("{name}|{part}"),
                        [name, ..] => name.to_owned(),
                        [] => String::new(),
                    }
                });
                for call in calls {
                    assert!(
                        needed.contains(&call.to_lowercase()),
                        "{call} is not asked for: {text}"
                    );
                }
            }
        }
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/redis")).unwrap();
        let files = files
            .filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().ends_with(".lua"));
        assert_eq!(files.count(), scripts + 1, "each script but permissions.lua");
    }

    /// The rights that an operator copies are those that are needed, and no others.
    #[test]
    fn the_rights_of_the_protocol_are_those_that_are_asked_for() {
        let protocol = include_str!("../../../protocol/PROTOCOL.md");
        let granted = |user: &str| -> BTreeSet<String> {
            let rule =
                protocol.lines().find(|line| line.starts_with(&format!("ACL SETUSER {user} ")));
            let words = rule.expect("PROTOCOL.md has the rights").split(' ');
            words.filter_map(|word| word.strip_prefix('+')).map(str::to_owned).collect()
        };
        let keys = Keys::new("relay", 0);
        // What the library asks when it connects.
        let with = |needed: &[Needed], others: &[&str]| {
            let mut names = names(needed);
            names.extend(others.iter().map(|&other| other.to_owned()));
            names
        };

        assert_eq!(granted("agent"), with(&of_agents(&keys), &["select"]));
        let others = ["info", "select"];
        assert_eq!(granted("relay"), with(&of_relays(&keys), &others));
    }
}
