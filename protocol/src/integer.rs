//! Whole numbers of frames, as any JSON library may write them: `1500`, `1500.0`, `1.5e3`; and what `null` means
//! in our own fields.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use crate::limits::AGENT_NUMBER_MAX;

/// A whole number that is not negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Integer(pub(crate) u64);

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Whole;

        impl Visitor<'_> for Whole {
            type Value = Integer;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number from 0 on")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Integer, E> {
                Ok(Integer(number))
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Integer, E> {
                // Up to there a float holds every whole number exactly.
                let is_whole = number.fract() == 0.0;
                if is_whole && (0.0..=AGENT_NUMBER_MAX as f64).contains(&number) {
                    return Ok(Integer(number as u64));
                }
                Err(E::invalid_value(Unexpected::Float(number), &self))
            }
        }

        from.deserialize_any(Whole)
    }
}

/// For a field that is a number.
pub(crate) fn integer<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    Integer::deserialize(from).map(|Integer(number)| number)
}

/// For a field that may be absent.
pub(crate) fn optional_integer<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<u64>, D::Error> {
    Ok(Option::<Integer>::deserialize(from)?.map(|Integer(number)| number))
}

/// For a field that has a default: `null` is absence.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}
