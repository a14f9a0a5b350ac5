//! Every bound that more than one side relies on, each with its reason.

use std::time::Duration;

/// The id of a channel, in bytes.
pub const CHANNEL_ID_BYTES_MAX: usize = 128;
/// The name of an event or a command, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// The `id` that makes a retried publish harmless, and a `command_id`, in bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;
/// One event's data, in bytes of JSON. Larger content belongs in a store, with a link to it here.
pub const EVENT_DATA_BYTES_MAX: usize = 64 * 1024;
/// How deep an event's data may nest. Below serde's 128 and Python's 1,000, so that every consumer
/// can read what every other accepted.
pub const EVENT_DATA_DEPTH_MAX: usize = 100;
/// One number in an event's data, in characters: Python reads 4,300 digits, and a double has 309 before its point.
pub const EVENT_DATA_NUMBER_MAX: usize = 400;
/// The detail of a command's outcome, in bytes: what is left of an event's data where it tells of the outcome.
pub const DETAIL_BYTES_MAX: usize = EVENT_DATA_BYTES_MAX - 256;
/// How deep a detail may nest there.
pub const DETAIL_DEPTH_MAX: usize = EVENT_DATA_DEPTH_MAX - 1;
/// One frame from a browser, in bytes.
pub const FRAME_UP_BYTES_MAX: usize = 64 * 1024;
/// One merged frame stays below this many bytes of text, as any single event does.
pub const MERGED_BYTES_MAX: usize = 60 * 1024;
/// The body of `POST /api/v1/publish`, in bytes.
pub const PUBLISH_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Events in one `POST /api/v1/publish`.
pub const PUBLISH_EVENTS_MAX: usize = 1_000;
/// Subscriptions of one connection.
pub const SUBSCRIPTIONS_MAX: usize = 256;
/// Events in one answer of `GET /api/v1/channels/{channel}/events`.
pub const READ_EVENTS_MAX: usize = 1_000;
/// The same, when the caller does not say.
pub const READ_EVENTS_DEFAULT: usize = 100;
/// The correlation `id` of a frame, in bytes of JSON.
pub const CORRELATION_ID_BYTES_MAX: usize = 128;
/// The id of an approval, in bytes.
pub const APPROVAL_ID_BYTES_MAX: usize = 128;
/// What a question shows, in bytes of JSON: with its id and its end it is an event's data.
pub const QUESTION_BYTES_MAX: usize = 60 * 1024;
/// Channels on which the same approval id is looked for: an answer beyond them must name its channel.
pub const APPROVAL_PLACES_MAX: usize = 8;
/// Questions that wait for answers on one channel: each joiner is told of them all.
pub const APPROVALS_MAX: usize = 64;
/// Of these, one agent's: half of the places are always left to the others.
pub const APPROVALS_PER_AGENT_MAX: usize = 32;
/// Budget questions of all agents that are pending on `global:events`, too.
pub const FIREHOSE_APPROVALS_MAX: usize = 1_024;
/// A larger one is told there, and is not pending there, in bytes of its data.
pub const FIREHOSE_APPROVAL_BYTES_MAX: usize = 4 * 1024;
/// Questions in one `subscribed` or `reset`, in bytes of JSON; the others follow in `pending` frames.
pub const PENDING_BYTES_MAX: usize = 16 * 1024;
/// One `pending` frame, in bytes: every client can read a frame of this size.
pub const PENDING_FRAME_BYTES_MAX: usize = 64 * 1024;
/// The reason of a Cancel or an answer, in characters, because people type it; the rest is cut off. It travels inside
/// several other things.
pub const REASON_CHARS_MAX: usize = 4_096;
/// Requests of one connection that wait for their replies.
pub const REQUESTS_MAX: usize = 64;
/// Commands and requests of one connection, a second; and as many again Cancels and answers. A page that sends
/// as fast as it may takes less than a fiftieth of a Redis core, and no person is as quick.
pub const COMMANDS_PER_SECOND: usize = 100;
/// How many of them may come at once.
pub const COMMANDS_BURST: usize = 200;
/// `auth` frames of one connection that may come at once; after that one a second: a signature is checked for each.
pub const AUTHS_BURST: usize = 5;
/// Channels that one connection may subscribe to a second; a channel is cheap to leave, so nothing limits that.
pub const SUBSCRIBES_PER_SECOND: usize = 50;
/// How many of them may come at once: all that a connection may hold, twice.
pub const SUBSCRIBES_BURST: usize = 512;
/// Frames in a row that cannot be read; then the connection is closed.
pub const UNREADABLE_MAX: usize = 100;
/// Commands of one sender that wait on a channel: one page that sends too much does not fill it for the others.
pub const WAITING_PER_SENDER_MAX: usize = 256;
/// Commands of all senders that wait on the channel of an agent or a session.
pub const WAITING_MAX: usize = 1_024;
/// Requests of one sender that wait on the channel of a service: a quarter of all, because one backend may ask for many
/// users.
pub const WAITING_SERVICE_PER_SENDER_MAX: usize = 2_500;
/// Requests of all senders that wait on the channel of a service, which many workers serve.
pub const WAITING_SERVICE_MAX: usize = 10_000;
/// The same in bytes, on any channel: what waits stands in Redis, whole.
pub const WAITING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Of these, one sender's.
pub const WAITING_BYTES_PER_SENDER_MAX: usize = 2 * 1024 * 1024;
/// Cancels of one sender that wait on a channel beside all that: so many with `run_id`, and so many without.
/// Nobody else can take these places, so a full list never refuses the Cancel that would empty it.
pub const WAITING_CANCELS_MAX: usize = 16;
/// Commands of one sender that nobody is there to take, in bytes a second and replica: they fill Redis until they
/// expire.
pub const UNSERVED_BYTES_PER_SECOND: usize = 64 * 1024;
/// How many of these bytes may come at once.
pub const UNSERVED_BYTES_BURST: usize = 4 * 1024 * 1024;
/// What Redis keeps of one sender's commands, requests, replies, ends of runs and ids of publishes, in bytes a second and
/// replica. It is forgotten within the hour.
pub const KEPT_BRIEFLY_BYTES_PER_SECOND: usize = 1024 * 1024;
/// How many of these bytes may come at once.
pub const KEPT_BRIEFLY_BYTES_BURST: usize = 16 * 1024 * 1024;
/// What Redis keeps of one sender's questions, and of channels that were not there before, in bytes a second and replica.
pub const KEPT_LONG_BYTES_PER_SECOND: usize = 64 * 1024;
/// How many of these bytes may come at once: an agent with 10,000 channels begins at once.
pub const KEPT_LONG_BYTES_BURST: usize = 64 * 1024 * 1024;
/// Agents that one Cancel reaches, the agent's own children and theirs.
pub const CANCELLED_MAX: usize = 10_000;
/// Agents that count as spawned by one agent, or for the runs begun on one session: each has a part in its Cancels.
pub const CHILDREN_MAX: usize = 1_024;
/// One frame from an agent behind a relay, in bytes: an event and what stands around it.
pub const AGENT_FRAME_BYTES_MAX: usize = 68 * 1024;
/// Calls of one agent behind a relay that are under way; then its connection is read no further.
pub const AGENT_CALLS_MAX: usize = 1_024;
/// The same, in bytes of their frames.
pub const AGENT_CALLS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Channels that one agent serves at a time.
pub const AGENT_CHANNELS_MAX: usize = 10_000;
/// Runs that are noted beside one lease as open.
pub const OPEN_RUNS_MAX: usize = 10_000;
/// The largest `id` and the largest incarnation in an agent's call: every JSON parser reads it exactly, and it has
/// 16 digits.
pub const AGENT_NUMBER_MAX: u64 = 9_007_199_254_740_991;
/// A run's id, in bytes.
pub const RUN_ID_BYTES_MAX: usize = 128;
/// Patterns in one list of a grant.
pub const GRANT_PATTERNS_MAX: usize = 256;
/// A token, in bytes. Larger ones are refused before they are looked at.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// How long the `id` of a publish is remembered: a caller can send it again for five minutes, and a replica
/// that could not reach Redis sends it for ten.
pub const IDEMPOTENCY_KEY_LIFETIME: Duration = Duration::from_secs(900);
/// The pace of WebSocket pings.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);
/// A connection that neither sends nor accepts a byte for this long is cut: two pings unanswered.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long before a token's end its connection receives `token_expiring`.
pub const TOKEN_EXPIRING_NOTICE: Duration = Duration::from_secs(60);
/// How long a command waits for an agent when it does not say.
pub const COMMAND_WAIT_DEFAULT: Duration = Duration::from_secs(600);
/// The longest a command may wait for an agent.
pub const COMMAND_WAIT_MAX: Duration = Duration::from_secs(24 * 3_600);
/// The longest a command may wait where no agent has been seen: the name may be misspelled.
pub const COMMAND_WAIT_UNKNOWN: Duration = Duration::from_secs(600);
/// For how long it is known that an agent has served a channel.
pub const AGENT_KNOWN: Duration = Duration::from_secs(7 * 24 * 3_600);
/// The longest a question may wait for an answer.
pub const APPROVAL_WAIT_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);
/// How long a Cancel of all that runs may wait: as long as a lease, so that it does not outlive the
/// agent that it was meant for.
pub const CANCEL_WAIT: Duration = Duration::from_secs(15);
/// How long a Cancel goes on from one spawned agent to the next: a later one must not end what was begun since.
pub const CANCEL_WALK: Duration = Duration::from_secs(30);
/// How long the outcome of a command and the reply to a request are remembered.
pub const OUTCOME_LIFETIME: Duration = Duration::from_secs(600);
/// How long a request waits when it does not say.
pub const REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// The longest a request may wait.
pub const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(60);
