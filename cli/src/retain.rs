//! What `--retain` means: how much the journals of each kind of channel keep. Pure.
//!
//! `session=16MiB/24h,global=1h`: for each kind what is to be other than the default, in any order: how many bytes, how
//! long, how many entries.

use std::time::Duration;

use journal::{Keep, Retention};

use crate::value::Refusal;

/// The newest entry is always kept, and one may have 64 KiB.
const BYTES_MIN: u64 = 64 * KIB;
/// Redis looks through a journal 64 times while so much is written: at 1 GiB for about 15 ms each time.
const BYTES_MAX: u64 = 1024 * MIB;
/// Each takes 30 bytes at least.
const ENTRIES_MAX: u64 = 10_000_000;
/// Journals are looked through every 100 s of writing.
const AGE_MIN: Duration = Duration::from_secs(60);
const AGE_MAX: Duration = Duration::from_secs(10_000 * 3_600);

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const BYTE_UNITS: [(&str, u64); 3] = [("GiB", 1024 * MIB), ("MiB", MIB), ("KiB", KIB)];
/// In seconds.
const AGE_UNITS: [(&str, u64); 3] = [("h", 3_600), ("m", 60), ("s", 1)];

const INSTEAD: &str = "Write for example `session=16MiB/24h`: bytes (`64KiB` to `1GiB`), an age (`1m` to `10000h`) or a number \
                       of entries (1 to 10000000), for `session`, `global`, `other`, `commands` or `service`.";

/// The defaults, changed as `text` says.
pub(crate) fn retention(text: &str) -> Result<Retention, Refusal> {
    let mut retention = Retention::default();
    let mut seen = Vec::new();
    for setting in text.split(',') {
        let (kind, parts) = setting
            .split_once('=')
            .ok_or_else(|| refuse(format!("`{setting}` does not say how much of what")))?;
        let keep = keep_of(&mut retention, kind)
            .ok_or_else(|| refuse(format!("`{kind}` is not a kind of journals")))?;
        for part in parts.split('/') {
            let field = set(keep, part)?;
            if seen.contains(&(kind, field)) {
                return Err(refuse(format!("the {field} of `{kind}` are given twice")));
            }
            seen.push((kind, field));
        }
    }
    Ok(retention)
}

/// A setting as `--retain` takes it.
pub(crate) fn shown(keep: &Keep) -> String {
    let in_units = |number: u64, units: &[(&str, u64)]| {
        let unit = units.iter().find(|(_, size)| number.is_multiple_of(*size));
        unit.map_or_else(|| number.to_string(), |(unit, size)| format!("{}{unit}", number / size))
    };
    let (bytes, age) =
        (in_units(keep.bytes, &BYTE_UNITS), in_units(keep.age.as_secs(), &AGE_UNITS));
    format!("{bytes}/{age}/{}", keep.entries)
}

fn keep_of<'a>(retention: &'a mut Retention, kind: &str) -> Option<&'a mut Keep> {
    Some(match kind {
        "session" => &mut retention.session,
        "global" => &mut retention.global,
        "other" => &mut retention.other,
        "commands" => &mut retention.commands,
        "service" => &mut retention.service,
        _ => return None,
    })
}

/// Sets what `part` says; which field that is.
fn set(keep: &mut Keep, part: &str) -> Result<&'static str, Refusal> {
    let digits = part.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = part.split_at(digits);
    let in_units = |units: &[(&str, u64)]| {
        let size = units.iter().find(|(name, _)| *name == unit)?.1;
        Some(number.parse::<u64>().ok()?.saturating_mul(size))
    };
    if let Some(bytes) = in_units(&BYTE_UNITS) {
        keep.bytes = within(part, bytes, BYTES_MIN, BYTES_MAX)?;
        return Ok("bytes");
    }
    if let Some(seconds) = in_units(&AGE_UNITS) {
        let seconds = within(part, seconds, AGE_MIN.as_secs(), AGE_MAX.as_secs())?;
        keep.age = Duration::from_secs(seconds);
        return Ok("ages");
    }
    if let Some(entries) = in_units(&[("", 1)]) {
        keep.entries = within(part, entries, 1, ENTRIES_MAX)?;
        return Ok("entries");
    }
    Err(refuse(format!("`{part}` is not a number of bytes or entries, or an age")))
}

fn within(part: &str, value: u64, min: u64, max: u64) -> Result<u64, Refusal> {
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    Err(refuse(format!("`{part}` is too {}", if value < min { "little" } else { "much" })))
}

fn refuse(why: String) -> Refusal {
    Refusal { why, instead: INSTEAD.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600;

    #[test]
    fn what_is_not_said_is_as_by_default() {
        let retention = retention("session=16MiB/24h,global=30m,service=1GiB/50000/48h").unwrap();
        let default = Retention::default();
        let session =
            Keep { bytes: 16 * MIB, age: Duration::from_secs(24 * HOUR), ..default.session };
        let global = Keep { age: Duration::from_secs(HOUR / 2), ..default.global };
        let age = Duration::from_secs(48 * HOUR);
        let service = Keep { bytes: 1024 * MIB, entries: 50_000, age };
        assert_eq!(retention, Retention { session, global, service, ..default });
    }

    #[test]
    fn a_setting_is_shown_as_it_is_given() {
        for text in ["64KiB/1m/1", "8MiB/24h/100000", "1GiB/10000h/4096", "1025KiB/90s/7"] {
            let retention = retention(&format!("other={text}")).unwrap();
            assert_eq!(shown(&retention.other), text);
        }
    }

    #[test]
    fn a_slip_is_refused_and_named() {
        for (text, why) in [
            ("", "how much of what"),
            ("16MiB", "how much of what"),
            ("session", "how much of what"),
            ("project=1h", "`project` is not a kind"),
            ("session=", "`` is not a number"),
            ("session=1h,", "`` does not say"),
            ("session=16MB", "`16MB`"),
            ("session=1.5GiB", "`1.5GiB`"),
            ("session=-1h", "`-1h`"),
            ("session=63KiB", "too little"),
            ("session=2GiB", "too much"),
            ("session=59s", "too little"),
            ("session=10001h", "too much"),
            ("session=0", "too little"),
            ("session=99999999999999999999", "`99999999999999999999`"),
            ("session=99999999999999999h", "too much"),
            ("session=2d", "`2d`"),
            ("session=1h/2h", "ages of `session` are given twice"),
            ("session=1h,session=1MiB/3h", "given twice"),
        ] {
            let refusal = retention(text).unwrap_err();
            assert!(refusal.why.contains(why), "{text}: {refusal:?}");
        }
    }
}
