//! Positions in a journal: `<epoch>-<n>-<check>`.
//!
//! Opaque to clients. Three numbers make every loss visible: a jump of `n` shows a gap, a lost
//! journal begins anew with another `epoch`, and a journal that was rolled back and grew again over
//! what somebody has seen fails the `check`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A position in a journal.
///
/// Epochs are compared for equality only; `n` orders within one.
///
/// ```
/// let offset: protocol::Offset = "1763661001123-42-7".parse().unwrap();
/// assert_eq!(offset.n, 42);
/// assert_eq!(offset.to_string(), "1763661001123-42-7");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Offset {
    /// Redis' clock in Unix milliseconds when the journal began (anew).
    pub epoch: u64,
    /// Consecutive from 1; 0 is the position before the first entry.
    pub n: u64,
    /// The low 32 bits of the entry's Redis time in microseconds. 0 marks a position without a
    /// retained entry: "has seen nothing up to n".
    pub check: u32,
}

/// The text is not an offset.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not an offset: pass back, unchanged, the `offset` of the last frame you saw")]
pub struct OffsetError(String);

impl Offset {
    /// The position of the entry `n`, written at `time_us` (Redis' Unix time in microseconds).
    pub fn of_entry(epoch: u64, n: u64, time_us: u64) -> Self {
        Self { epoch, n, check: time_us as u32 }
    }

    /// The position from which delivery starts with the entry after `n`, whatever came before.
    pub fn before(epoch: u64, next: u64) -> Self {
        Self { epoch, n: next.saturating_sub(1), check: 0 }
    }

    /// Whether `next` follows this position without a gap.
    pub fn is_followed_by(&self, next: &Self) -> bool {
        self.epoch == next.epoch && self.n.checked_add(1) == Some(next.n)
    }
}

impl FromStr for Offset {
    type Err = OffsetError;

    fn from_str(text: &str) -> Result<Self, OffsetError> {
        fn number<T: FromStr>(part: Option<&str>) -> Option<T> {
            // Only plain digits: `parse` alone would also take `+1`.
            part.filter(|p| p.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
        }
        let mut parts = text.split('-');
        let offset = (|| {
            Some(Self {
                epoch: number(parts.next())?,
                n: number(parts.next())?,
                check: number(parts.next())?,
            })
        })();
        match (offset, parts.next()) {
            (Some(offset), None) => Ok(offset),
            _ => Err(OffsetError(crate::channel::shortened(text))),
        }
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.epoch, self.n, self.check)
    }
}

#[cfg(test)]
mod tests {
    use super::Offset;

    #[test]
    fn only_three_plain_numbers_are_an_offset() {
        for bad in
            ["", "1", "1-2", "1-2-3-4", "1--3", "+1-2-3", "1-2-4294967296", "a-b-c", " 1-2-3"]
        {
            assert!(bad.parse::<Offset>().is_err(), "`{bad}` must not parse");
        }
    }

    #[test]
    fn the_check_is_the_low_half_of_the_time() {
        let offset = Offset::of_entry(1, 2, (7 << 32) + 9);
        assert_eq!(offset.check, 9);
    }
}
