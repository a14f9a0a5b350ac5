//! Whether this Redis user may run all that a script runs: asked once per connection, before the first run. A
//! script that is refused in its middle has done half of its work.

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

/// What `change.lua` and the scripts that read states run.
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
        &["HGET", &index, "x"],
        &["HSET", &index, "x", "x"],
        &["HDEL", &index, "x"],
        &["ZCARD", &deadlines],
        &["ZSCORE", &deadlines, "x"],
        &["ZADD", &deadlines, "1", "x"],
        &["ZREM", &deadlines, "x"],
        &["ZREVRANGE", &waiting, "0", "0", "WITHSCORES"],
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
