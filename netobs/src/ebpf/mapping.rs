//! A BPF array map in this process's memory (`BPF_F_MMAPABLE`): reading it costs no system call.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

/// An array of 64-bit words that the kernel writes at the same time. Each word is read and written
/// whole; words among each other have no order.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: all access is by atomics, and the memory is this object's until it is dropped.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `words` words of the map behind `fd`, readable and writable.
    ///
    /// # Errors
    /// What `mmap(2)` says, for one if the map is not mmapable or smaller.
    pub fn new(fd: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        // SAFETY: a new shared mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                words * size_of::<u64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Self { start, words })
    }

    /// The words from `first` on; empty where that is past the end.
    pub fn words(&self, first: usize, count: usize) -> &[AtomicU64] {
        // SAFETY: the mapping is `words` long, page-aligned, and lives as long as self.
        let all = unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) };
        all.get(first..first + count).unwrap_or_default()
    }

    /// Sets one word.
    pub fn store(&self, index: usize, value: u64) {
        for word in self.words(index, 1) {
            word.store(value, Ordering::Release);
        }
    }

    pub fn load(&self, index: usize) -> Option<u64> {
        self.words(index, 1).first().map(|word| word.load(Ordering::Acquire))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours and nobody holds a borrow of it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.words * size_of::<u64>()) };
    }
}
