//! 64-byte aligned buffers for packed weights, KV and scratch. Large ones ask the kernel for huge pages, since a
//! decode step walks gigabytes once.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

#[cfg(target_os = "linux")]
const HUGE: usize = 2 << 20;

/// Maps `bytes` of zeroes on huge pages where the system gives them; `None` for small sizes and elsewhere. Mapped
/// rather than allocated, so that pages aren't touched before they are asked to be huge, and go back when dropped.
#[cfg(target_os = "linux")]
fn map_huge(bytes: usize) -> Option<NonNull<u8>> {
    if bytes < 2 * HUGE {
        return None;
    }
    let size = bytes.next_multiple_of(HUGE);
    // SAFETY: a fresh anonymous mapping, one huge page longer than needed so that an aligned range lies inside; the
    // rest is given back at once and the advice changes no contents.
    let mapped = unsafe {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let base = libc::mmap(std::ptr::null_mut(), size + HUGE, prot, flags, -1, 0);
        if base == libc::MAP_FAILED {
            handle_alloc_error(Layout::from_size_align(bytes, 64).ok()?);
        }
        let before = base.cast::<u8>().align_offset(HUGE);
        let start = base.cast::<u8>().add(before);
        if before > 0 {
            libc::munmap(base, before);
        }
        libc::munmap(start.add(size).cast(), HUGE - before);
        libc::madvise(start.cast(), size, libc::MADV_HUGEPAGE);
        start
    };
    NonNull::new(mapped)
}

/// Undoes [`map_huge`] for the same size; false if that mapped nothing.
#[cfg(target_os = "linux")]
fn unmap_huge(ptr: NonNull<u8>, bytes: usize) -> bool {
    if bytes < 2 * HUGE {
        return false;
    }
    // SAFETY: exactly the range map_huge left.
    unsafe { libc::munmap(ptr.as_ptr().cast(), bytes.next_multiple_of(HUGE)) };
    true
}

#[cfg(not(target_os = "linux"))]
fn map_huge(_bytes: usize) -> Option<NonNull<u8>> {
    None
}

#[cfg(not(target_os = "linux"))]
fn unmap_huge(_ptr: NonNull<u8>, _bytes: usize) -> bool {
    false
}

/// Plain old data that is valid when all bytes are zero.
pub(crate) trait Pod: Copy + Send + Sync + 'static {}
impl Pod for u8 {}
impl Pod for i8 {}
impl Pod for u16 {}
impl Pod for i32 {}
impl Pod for f32 {}

/// A zero-initialised, 64-byte aligned, fixed-length slice.
pub(crate) struct AlignedBuf<T: Pod> {
    ptr: NonNull<T>,
    len: usize,
}

// SAFETY: AlignedBuf owns its memory like Vec<T> does, and T is Send + Sync.
unsafe impl<T: Pod> Send for AlignedBuf<T> {}
// SAFETY: as above; shared access only reads.
unsafe impl<T: Pod> Sync for AlignedBuf<T> {}

impl<T: Pod> AlignedBuf<T> {
    pub(crate) const fn empty() -> Self {
        Self { ptr: NonNull::dangling(), len: 0 }
    }

    pub(crate) fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self::empty();
        }
        let layout = Self::layout(len);
        if let Some(ptr) = map_huge(layout.size()) {
            return Self { ptr: ptr.cast(), len };
        }
        // SAFETY: the layout has a non-zero size.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw.cast::<T>()) else { handle_alloc_error(layout) };
        Self { ptr, len }
    }

    fn layout(len: usize) -> Layout {
        let bytes = len.saturating_mul(size_of::<T>());
        match Layout::from_size_align(bytes, 64) {
            Ok(layout) => layout,
            Err(_) => panic!("buffer of {len} elements exceeds the address space"),
        }
    }

    /// Grows (contents lost) to at least `len`; never shrinks, so steady use doesn't allocate.
    pub(crate) fn reserve(&mut self, len: usize) -> &mut [T] {
        if self.len < len {
            *self = Self::empty();
            *self = Self::zeroed(len.next_power_of_two());
        }
        &mut self[..len]
    }
}

impl<T: Pod> Drop for AlignedBuf<T> {
    fn drop(&mut self) {
        if self.len > 0 {
            let layout = Self::layout(self.len);
            if !unmap_huge(self.ptr.cast(), layout.size()) {
                // SAFETY: allocated in `zeroed` with this very layout, freed once.
                unsafe { dealloc(self.ptr.as_ptr().cast(), layout) };
            }
        }
    }
}

impl<T: Pod> Deref for AlignedBuf<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: ptr is valid for len zero-initialised elements (dangling and aligned when len is 0).
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: Pod> DerefMut for AlignedBuf<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in deref, and &mut self makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}
