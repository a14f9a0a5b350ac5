//! HTTP for clients without a socket: publish, and read a channel's events.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use journal::{AppendError, Kept, Name, NewEntry, Since};
use protocol::frame::{ErrorBody, parse_since};
use protocol::limits::{
    PUBLISH_BODY_BYTES_MAX, PUBLISH_EVENTS_MAX, READ_EVENTS_DEFAULT, READ_EVENTS_MAX,
};
use protocol::{
    Channel, Counted, ErrorCode, Format, Kind, Object, Offset, check_data, check_event_name,
    check_idempotency_key, encode, json_error,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::refuse::Refused;
use super::{AppState, Caller, body};
use crate::auth::Principal;
use crate::commands::refuse_growth;

/// How long a publisher waits while Redis is away or refuses. What was not sent by then is taken back; where the
/// outcome is unknown, it may safely ask again with an `id`.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is appended in one turn.
const PIECE_EVENTS: usize = 64;
const PIECE_BYTES: usize = 256 * 1024;

/// What is kept of an event's `id` for 15 minutes, about, beside the `id`.
const KEY_BYTES: usize = 256;

/// How long a body may take to arrive: 8 MiB at 2 Mbit/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// One event of a `POST /api/v1/publish`.
#[derive(Deserialize)]
struct Publish<'a> {
    channel: String,
    event: String,
    #[serde(borrow)]
    data: &'a RawValue,
    id: Option<String>,
}

/// What became of one event.
#[derive(Serialize)]
#[serde(untagged)]
enum Published<'a> {
    Appended(&'a Appended),
    Refused { error: ErrorBody<'a> },
}

/// An event that is in its journal.
#[derive(Serialize)]
struct Appended {
    offset: String,
    /// How many connections subscribe to the channel; absent where Redis did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    subscribers: Option<u64>,
}

/// `POST /api/v1/publish`
pub(super) async fn publish(
    State(app): State<Arc<AppState>>,
    caller: Caller,
    body: Body,
) -> Result<Response, Refused> {
    #[derive(Serialize)]
    struct Results<'a> {
        results: Vec<Published<'a>>,
    }
    let principal = &caller.principal;
    let body = body::read(&caller, body, PUBLISH_BODY_BYTES_MAX, BODY_TIMEOUT, &app.memory).await?;
    if !body.trim_start().starts_with('[') {
        let Object(event) =
            serde_json::from_str::<Object<Publish<'_>>>(&body).map_err(|error| {
                Refused::bad(format_args!(
                    "the body is not an event {{channel, event, data, id?}}: {}",
                    json_error(&error)
                ))
            })?;
        let outcome = publish_each(&app, principal, vec![event]).await.pop();
        let appended = outcome.unwrap_or_else(|| Err(Refused::bad("nothing to publish")))?;
        return Ok(Json(appended).into_response());
    }
    let events: Counted<&RawValue, PUBLISH_EVENTS_MAX> =
        serde_json::from_str(&body).map_err(|error| {
            let error = json_error(&error);
            Refused::bad(format_args!("the body is not a list of events: {error}"))
        })?;
    if events.length > PUBLISH_EVENTS_MAX {
        let message =
            format!("{} events in one call, the limit is {PUBLISH_EVENTS_MAX}", events.length);
        return Err(Refused::new(ErrorCode::TooLarge, message));
    }
    let outcomes = append_each(&app, principal, &events.kept).await;
    let results = outcomes.iter().map(|outcome| match outcome {
        Ok(appended) => Published::Appended(appended),
        Err(refused) => Published::Refused { error: refused.body() },
    });
    Ok(Json(Results { results: results.collect() }).into_response())
}

/// Appends those of a list that are events, in order; each that is not has its own error.
async fn append_each(
    app: &AppState,
    principal: &Principal,
    raw: &[&RawValue],
) -> Vec<Result<Appended, Refused>> {
    let parsed: Vec<Result<Object<Publish<'_>>, serde_json::Error>> =
        raw.iter().map(|raw| serde_json::from_str(raw.get())).collect();
    let (mut events, mut errors) = (Vec::new(), Vec::new());
    for event in parsed {
        match event {
            Ok(Object(event)) => {
                events.push(event);
                errors.push(None);
            }
            Err(error) => errors.push(Some(Refused::bad(format_args!(
                "this is not an event {{channel, event, data, id?}}: {}",
                json_error(&error)
            )))),
        }
    }
    let mut outcomes = publish_each(app, principal, events).await.into_iter();
    let missing = || Err(Refused::new(ErrorCode::Unavailable, "no outcome"));
    errors
        .into_iter()
        .map(|error| error.map_or_else(|| outcomes.next().unwrap_or_else(missing), Err))
        .collect()
}

/// Appends all, and counts meanwhile who subscribes to their channels.
async fn publish_each(
    app: &AppState,
    principal: &Principal,
    events: Vec<Publish<'_>>,
) -> Vec<Result<Appended, Refused>> {
    let permitted = |event: &Publish<'_>| {
        let channel: Option<Channel> = event.channel.parse().ok();
        channel.filter(|channel| principal.grant.may_publish(channel))
    };
    let channels: Vec<Option<Channel>> = events.iter().map(permitted).collect();
    let distinct: HashSet<&Channel> = channels.iter().flatten().collect();
    let distinct: Vec<Channel> = distinct.into_iter().cloned().collect();
    let counting = tokio::time::timeout(PATIENCE, app.journal.subscribers_of(&distinct));
    let (outcomes, counts) = tokio::join!(append(app, principal, events), counting);
    let counts = counts.ok().and_then(Result::ok).unwrap_or_default();
    let counts: HashMap<&Channel, u64> = distinct.iter().zip(counts).collect();
    let outcomes = outcomes.into_iter().zip(&channels).map(|(outcome, channel)| {
        let subscribers = channel.as_ref().and_then(|channel| counts.get(channel).copied());
        outcome.map(|offset| Appended { offset: offset.to_string(), subscribers })
    });
    outcomes.collect()
}

/// Piece by piece, each in its sender's turn: their order is that of the list.
async fn append(
    app: &AppState,
    principal: &Principal,
    events: Vec<Publish<'_>>,
) -> Vec<Result<Offset, Refused>> {
    let deadline = Instant::now() + PATIENCE;
    let (growth, sender) = (app.journal.growth(), &*principal.sender);
    let mut outcomes = Vec::with_capacity(events.len());
    let mut events = events.into_iter().peekable();
    while events.peek().is_some() {
        let (mut bytes, mut keys) = (0, 0);
        let mut piece: Vec<Publish<'_>> = Vec::new();
        while piece.len() < PIECE_EVENTS
            && bytes < PIECE_BYTES
            && let Some(event) = events.next()
        {
            bytes += event.data.get().len();
            keys += event.id.as_ref().map_or(0, |id| id.len() + KEY_BYTES);
            piece.push(event);
        }
        let paced = async {
            growth.wait_until(sender, Kept::Briefly { is_cancel: false }, keys, deadline).await?;
            growth.wait_until(sender, Kept::Long, 0, deadline).await
        };
        if let Err(too_fast) = paced.await {
            let refused = || Err(refuse_growth(&too_fast).into());
            outcomes.extend(piece.iter().map(|_| refused()));
            continue;
        }
        match tokio::time::timeout_at(deadline, app.turns.wait(sender)).await {
            Ok(_turn) => outcomes.extend(append_piece(app, principal, piece, deadline).await),
            Err(_) => outcomes.extend(piece.iter().map(|_| Err(refuse(&AppendError::Full)))),
        }
    }
    outcomes
}

/// Enqueues all, then waits for all: they travel together.
async fn append_piece(
    app: &AppState,
    principal: &Principal,
    events: Vec<Publish<'_>>,
    deadline: Instant,
) -> Vec<Result<Offset, Refused>> {
    let mut receipts = Vec::with_capacity(events.len());
    for event in events {
        receipts.push(match check(principal, event) {
            Ok((name, entry)) => {
                let enqueued =
                    tokio::time::timeout_at(deadline, app.journal.enqueue(&name, vec![entry]));
                match enqueued.await {
                    Ok(receipt) => receipt.map_err(|error| refuse(&error)),
                    Err(_) => Err(refuse(&AppendError::Full)),
                }
            }
            Err(refused) => Err(refused),
        });
    }
    let mut outcomes = Vec::with_capacity(receipts.len());
    for receipt in receipts {
        outcomes.push(match receipt {
            Ok(receipt) => match receipt.until(deadline).await {
                Ok(appended) => {
                    let offset = appended.first().and_then(|appended| appended.offset);
                    if offset.is_some_and(|offset| offset.n == 1) {
                        app.journal.growth().charge_new(&principal.sender);
                    }
                    offset.ok_or_else(|| refuse(&AppendError::Unavailable))
                }
                Err(error) => Err(refuse(&error)),
            },
            Err(refused) => Err(refused),
        });
    }
    outcomes
}

fn check(principal: &Principal, event: Publish<'_>) -> Result<(Name, NewEntry), Refused> {
    let channel: Channel = event.channel.parse()?;
    if !principal.grant.may_publish(&channel) {
        return Err(Refused::not_found(format_args!("`{channel}`")));
    }
    if channel.kind() == Kind::Service {
        return Err(Refused::bad("a service carries no events"));
    }
    check_event_name(&event.event)?;
    check_data(event.data.get())?;
    let mut entry = NewEntry::new(event.event, event.data.get());
    if let Some(id) = event.id {
        check_idempotency_key(&id)?;
        entry = entry.with_key(id);
    }
    Ok((Name::events(channel), entry))
}

fn refuse(error: &AppendError) -> Refused {
    let code = match error {
        AppendError::Conflict(_) => ErrorCode::Conflict,
        error if error.is_retryable() => ErrorCode::Unavailable,
        _ => ErrorCode::BadRequest,
    };
    Refused::new(code, error.to_string())
}

#[derive(Serialize)]
pub(super) struct EventsPage {
    events: Vec<Box<RawValue>>,
    offset: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reset: Option<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
    more: bool,
}

/// `GET /api/v1/channels/{channel}/events?since=&limit=`
pub(super) async fn read(
    State(app): State<Arc<AppState>>,
    Path(channel): Path<String>,
    caller: Caller,
) -> Result<Json<EventsPage>, Refused> {
    let channel = caller.readable(&channel)?;
    let since = caller.query.get("since").map_or(Ok(Since::Start), parse_since)?;
    let limit = caller.limit(READ_EVENTS_DEFAULT, READ_EVENTS_MAX)?;
    let page = app.journal.read(&Name::events(channel.clone()), since, limit).await?;
    let events = page.entries.iter().map(|entry| {
        RawValue::from_string(encode(Format::Envelope, &channel, entry, 1))
            .map_err(|error| Refused::new(ErrorCode::Unavailable, error.to_string()))
    });
    Ok(Json(EventsPage {
        events: events.collect::<Result<_, _>>()?,
        offset: page.end().map(|offset| offset.to_string()),
        reset: page.reset.map(journal::Reason::as_str),
        truncated: page.truncated,
        more: page.has_more(),
    }))
}
