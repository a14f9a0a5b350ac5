//! An entry as the text that goes to a browser: the envelope, or flat.
//!
//! The data is never interpreted: it is spliced in as the writer wrote it.

use std::fmt::Write as _;

use crate::{Channel, Entry, Kind};

/// In which shape a subscription wants its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `{"type":"event","channel":…,"offset":…,"event":…,"ts":…,"data":…}`
    Envelope,
    /// The data's own fields, then `type`, the address, `offset` and `timestamp`.
    Flat,
}

/// The frame for `entry` on `channel`; `merged` is the number of entries it joins, if more than one.
pub fn encode(format: Format, channel: &Channel, entry: &Entry, merged: u64) -> String {
    let mut out = String::with_capacity(entry.data.len() + channel.as_str().len() + 160);
    let written = match format {
        Format::Envelope => envelope(&mut out, channel, entry, merged),
        Format::Flat => flat(&mut out, channel, entry, merged),
    };
    // Writing to a String cannot fail.
    written.expect("a String takes every write");
    out
}

fn envelope(out: &mut String, channel: &Channel, entry: &Entry, merged: u64) -> std::fmt::Result {
    write!(
        out,
        r#"{{"type":"event","channel":"{channel}","offset":"{}","event":"{}","ts":{}"#,
        entry.offset,
        entry.name,
        entry.time_us / 1_000,
    )?;
    if merged > 1 {
        write!(out, r#","merged":{merged}"#)?;
    }
    write!(out, r#","data":{}}}"#, entry.data)
}

/// The relay's fields come last, so that they win in every map-like parser should the data use one of
/// their names.
fn flat(out: &mut String, channel: &Channel, entry: &Entry, merged: u64) -> std::fmt::Result {
    let data = entry.data.trim_matches([' ', '\t', '\n', '\r']);
    match data.strip_prefix('{').and_then(|d| d.strip_suffix('}')) {
        Some(fields) if fields.trim_matches([' ', '\t', '\n', '\r']).is_empty() => out.push('{'),
        Some(fields) => write!(out, "{{{fields},")?,
        None => write!(out, r#"{{"data":{data},"#)?,
    }
    write!(out, r#""type":"{}","#, entry.name)?;
    match channel.kind() {
        Kind::Session => write!(out, r#""sessionId":"{}","#, channel.id())?,
        Kind::Plan => write!(out, r#""plan_id":"{}","#, channel.id())?,
        _ => write!(out, r#""channel":"{channel}","#)?,
    }
    write!(
        out,
        r#""offset":"{}","timestamp":"{}""#,
        entry.offset,
        iso_8601(entry.time_us / 1_000)
    )?;
    if merged > 1 {
        write!(out, r#","merged":{merged}"#)?;
    }
    out.push('}');
    Ok(())
}

/// Unix milliseconds as `2026-11-20T10:00:00.123Z`.
pub fn iso_8601(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1_000)
}

/// Days since 1970-01-01 as a date of the Gregorian calendar: Howard Hinnant's `civil_from_days`
/// (<https://howardhinnant.github.io/date_algorithms.html>), for days that are not negative.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::iso_8601;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // `date -u -d @SECONDS +%FT%T`
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_123, "2000-02-29T00:00:00.123Z"),
            (1_763_661_001_123, "2025-11-20T17:50:01.123Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(iso_8601(ms), text);
        }
    }
}
