#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| netobs::fuzzing::dns_messages(bytes));
