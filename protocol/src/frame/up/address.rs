//! Frames that name channels: subscribe, unsubscribe, and since when.

use std::collections::HashMap;

use serde_json::value::RawValue;

use super::fields::Fields;
use super::{
    Addressing, ClientFrame, Refusal, Since, Subscribe, Target, bad, parse_format, parse_since,
};
use crate::channel::shortened;
use crate::limits::SUBSCRIPTIONS_MAX;
use crate::{Channel, Counted, ErrorCode, Kind};

/// Channels in one frame. Each gets an answer, so what one frame makes the relay hold must be bounded.
const CHANNELS_MAX: usize = 4 * SUBSCRIPTIONS_MAX;

impl Fields<'_> {
    pub(super) fn subscribe(&self) -> Result<ClientFrame, Refusal> {
        let format = self.string("format")?.map(|f| parse_format(&f)).transpose()?;
        let targets = self.targets()?;
        let since = self.since(targets.len())?;
        let subscribes = targets.into_iter().map(|target| {
            let target = target?;
            let since = match &since {
                SinceField::Absent => None,
                SinceField::All(since) => Some(*since),
                SinceField::Each(each) => match each.get(target.channel.as_str()) {
                    None => None,
                    Some(Ok(since)) => Some(*since),
                    Some(Err(refusal)) => {
                        return Err(refusal.clone().about(target.channel.as_str()));
                    }
                },
            };
            Ok(Subscribe { target, since, format })
        });
        Ok(ClientFrame::Subscribe(subscribes.collect()))
    }

    /// Every channel that the frame names, in any of the ways.
    pub(super) fn targets(&self) -> Result<Vec<Result<Target, Refusal>>, Refusal> {
        let mut named: Vec<(Addressing, String)> = Vec::new();
        let mut length = 0;
        if let Some(raw) = self.raw("channels") {
            let channels: Option<Counted<String, CHANNELS_MAX>> =
                serde_json::from_str(raw.get())
                    .map_err(|_| bad("`channels` must be a list of strings"))?;
            if let Some(channels) = channels {
                length = channels.length;
                let kept = channels.kept.into_iter();
                named.extend(kept.map(|name| (Addressing::Channel, name)));
            }
        }
        named.extend(self.string("channel")?.map(|name| (Addressing::Channel, name)));
        named.extend(self.string("sessionId")?.map(|id| (Addressing::SessionId, id)));
        named.extend(self.string("plan_id")?.map(|id| (Addressing::PlanId, id)));
        if named.is_empty() {
            return Err(bad(
                "name at least one channel: `channels`, `channel`, `sessionId` or `plan_id`",
            ));
        }
        let length = length.max(named.len());
        if length > CHANNELS_MAX {
            let message = format!("{length} channels in one frame, the limit is {CHANNELS_MAX}");
            return Err(Refusal::new(ErrorCode::LimitExceeded, message));
        }
        Ok(named.into_iter().map(|(addressing, name)| target(addressing, &name)).collect())
    }

    fn since(&self, channels: usize) -> Result<SinceField, Refusal> {
        let Some(raw) = self.raw("since") else { return Ok(SinceField::Absent) };
        if let Some(since) = one_since(raw) {
            let since = since?;
            if matches!(since, Since::Offset(_)) && channels > 1 {
                return Err(bad(
                    "one offset cannot serve several channels: `since` must be {channel: offset}",
                ));
            }
            return Ok(SinceField::All(since));
        }
        let each: HashMap<String, &RawValue> = serde_json::from_str(raw.get())
            .map_err(|_| bad("`since` must be an offset, \"start\" or {channel: offset}"))?;
        let wrong = || Err(bad("each `since` must be an offset or \"start\""));
        let each = each.into_iter().map(|(name, raw)| (name, one_since(raw).unwrap_or_else(wrong)));
        Ok(SinceField::Each(each.collect()))
    }
}

enum SinceField {
    Absent,
    All(Since),
    Each(HashMap<String, Result<Since, Refusal>>),
}

/// `None` if the value is not a single position.
fn one_since(raw: &RawValue) -> Option<Result<Since, Refusal>> {
    // An explicit null is a stored "nothing seen yet": everything retained.
    let text: Option<String> = serde_json::from_str(raw.get()).ok()?;
    Some(text.map_or(Ok(Since::Start), |text| parse_since(&text)))
}

fn target(addressing: Addressing, name: &str) -> Result<Target, Refusal> {
    let channel = match addressing {
        Addressing::Channel => name.parse(),
        Addressing::SessionId => Channel::session(name),
        Addressing::PlanId => Channel::new(Kind::Plan, name),
    };
    let refuse = |message: String| bad(message).about(shortened(name));
    let channel = channel.map_err(|error| refuse(error.to_string()))?;
    if channel.kind() == Kind::Service {
        return Err(refuse(
            "a service has no events to subscribe to: send it a `request`".to_owned(),
        ));
    }
    if channel == Channel::global_everyone() {
        return Err(refuse(
            "`global:everyone` reaches every connection without a subscription".to_owned(),
        ));
    }
    Ok(Target { channel, addressing })
}
