//! What Redis publishes with every append.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| journal::properties::notifications(bytes));
