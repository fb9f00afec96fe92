#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| netobs::fuzzing::cgroup_paths(bytes));
