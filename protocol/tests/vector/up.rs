//! A frame up in plain values, as `frames.json` describes it.

use protocol::Format;
use protocol::frame::{self, Addressing, ClientFrame, Refusal, Since};
use serde_json::{Value, json};

/// A frame up as plain values: the form that `frames.json` describes.
pub(crate) fn normal(frame: ClientFrame) -> Value {
    let addressing = |addressing| match addressing {
        Addressing::Channel => "channel",
        Addressing::SessionId => "sessionId",
        Addressing::PlanId => "plan_id",
    };
    let target = |target: frame::Target| json!({"channel": target.channel.as_str(), "addressing": addressing(target.addressing)});
    match frame {
        ClientFrame::Subscribe(each) => {
            let each = each.into_iter().map(|subscribe| {
                let subscribe = match subscribe {
                    Ok(subscribe) => subscribe,
                    Err(refusal) => return refused(refusal),
                };
                let mut item = target(subscribe.target);
                if let Some(since) = subscribe.since {
                    item["since"] = match since {
                        Since::Start => "start".into(),
                        Since::Offset(offset) => offset.to_string().into(),
                    };
                }
                if let Some(format) = subscribe.format {
                    item["format"] = match format {
                        Format::Envelope => "envelope".into(),
                        Format::Flat => "flat".into(),
                    };
                }
                item
            });
            json!({"subscribe": each.collect::<Vec<_>>()})
        }
        ClientFrame::Unsubscribe(each) => {
            let each = each.into_iter().map(|named| named.map_or_else(refused, target));
            json!({"unsubscribe": each.collect::<Vec<_>>()})
        }
        ClientFrame::Ping => json!({"ping": {}}),
        ClientFrame::Pong => json!({"pong": {}}),
        ClientFrame::Command(command) => {
            let mut item = json!({
                "channel": command.channel.as_str(), "name": command.name, "data": command.data,
                "command_id": command.command_id.to_string(), "may_wait": command.may_wait,
                "expires_in_ms": command.expires_in.as_millis() as u64,
            });
            if let Some(frame::Cancels { run_id, reason }) = command.cancels {
                item["cancels"] = json!({"run_id": run_id, "reason": reason});
            }
            json!({ "command": item })
        }
        ClientFrame::Answer(answer) => json!({"answer": {
            "request_id": answer.request_id, "channel": answer.channel.as_ref().map(|channel| channel.as_str()),
            "asked": match answer.asks {
                protocol::Asks::Permission => "permission",
                protocol::Asks::Budget => "budget",
            },
            "allowed": answer.allowed, "always": answer.always, "reason": answer.reason,
            "digest": answer.digest, "command_id": answer.command_id.to_string(),
        }}),
        ClientFrame::Auth(token) => json!({"auth": {"token": token.as_str()}}),
        ClientFrame::Request(request) => json!({"request": {
            "channel": request.channel.as_str(), "method": request.method, "params": request.params,
            "timeout_ms": request.timeout.as_millis() as u64,
            "command_id": request.command_id.to_string(),
        }}),
    }
}

pub(crate) fn refused(refusal: Refusal) -> Value {
    let mut error = json!({"code": refusal.code.as_str(), "message": refusal.message});
    if let Some(channel) = refusal.channel {
        error["channel"] = channel.into();
    }
    json!({ "error": error })
}
