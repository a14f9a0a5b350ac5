//! A token, its claims and its grant.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| relay::properties::tokens(bytes));
