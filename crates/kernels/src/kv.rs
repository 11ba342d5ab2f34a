//! The KV cache of one stage: per layer and slot, keys and values in the same panel layout as the weights, so that
//! attention is two of the same matrix products. A stage owns one; slots are allocated for exactly the positions a
//! sequence will need, which is known when it is admitted.
//!
//! Per (slot, layer, kv head): keys as `capacity / 32` panels of 32 positions x head_dim steps; values as
//! `head_dim / 32` panels of 32 dimensions x capacity steps.

use crate::Error;
use crate::aligned::AlignedBuf;
use crate::packed::{PANEL, bf16_lane, f32_to_bf16};

/// Storage type of keys and values. Part of the numerics id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// 32-bit floats.
    F32,
    /// bfloat16: half the traffic.
    Bf16,
}

impl KvDtype {
    /// Short lower-case name, as flags and numerics ids spell it.
    pub fn name(self) -> &'static str {
        match self {
            KvDtype::F32 => "f32",
            KvDtype::Bf16 => "bf16",
        }
    }

    /// Bytes per stored value.
    pub fn size(self) -> usize {
        match self {
            KvDtype::F32 => 4,
            KvDtype::Bf16 => 2,
        }
    }
}

pub(crate) enum Store {
    F32(AlignedBuf<f32>),
    Bf16(AlignedBuf<u16>),
}

impl Store {
    fn zeroed(dtype: KvDtype, len: usize) -> Self {
        match dtype {
            KvDtype::F32 => Store::F32(AlignedBuf::zeroed(len)),
            KvDtype::Bf16 => Store::Bf16(AlignedBuf::zeroed(len)),
        }
    }

    /// Sets lane `lane` of the 32-wide step starting at `step`.
    #[inline(always)]
    fn set(&mut self, step: usize, lane: usize, value: f32) {
        match self {
            Store::F32(values) => values[step + lane] = value,
            Store::Bf16(values) => values[step + bf16_lane(lane)] = f32_to_bf16(value),
        }
    }

    /// The first byte.
    pub(crate) fn bytes(&self) -> *const u8 {
        match self {
            Store::F32(values) => values.as_ptr().cast(),
            Store::Bf16(values) => values.as_ptr().cast(),
        }
    }
}

pub(crate) struct Slot {
    /// Positions this slot can hold, a whole number of panels.
    pub(crate) padded: usize,
    pub(crate) keys: Store,
    pub(crate) values: Store,
    capacity: usize,
    len: usize,
}

/// Keys and values of `layers` layers for a table of slots.
pub struct KvSlots {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    dtype: KvDtype,
    slots: Vec<Option<Slot>>,
}

impl KvSlots {
    /// A table of `slots` free slots.
    pub fn new(slots: usize, layers: usize, kv_heads: usize, head_dim: usize, dtype: KvDtype) -> Self {
        Self { layers, kv_heads, head_dim, dtype, slots: (0..slots).map(|_| None).collect() }
    }

    /// Bytes a slot of `capacity` positions takes, all layers.
    pub fn slot_bytes(&self, capacity: usize) -> usize {
        let padded = capacity.next_multiple_of(PANEL);
        self.layers * self.kv_heads * padded * (self.head_dim + self.value_width()) * self.dtype.size()
    }

    /// Makes room for `capacity` positions in a free slot.
    ///
    /// # Errors
    /// [`Error::NoSuchSlot`], [`Error::SlotInUse`].
    pub fn allocate(&mut self, slot: usize, capacity: usize) -> Result<(), Error> {
        let slots = self.slots.len();
        let entry = self.slots.get(slot).ok_or(Error::NoSuchSlot { slot, slots })?;
        if entry.is_some() {
            return Err(Error::SlotInUse { slot });
        }
        let padded = capacity.next_multiple_of(PANEL);
        let heads = self.layers * self.kv_heads;
        let keys = Store::zeroed(self.dtype, heads * padded * self.head_dim);
        let values = Store::zeroed(self.dtype, heads * padded * self.value_width());
        self.slots[slot] = Some(Slot { padded, keys, values, capacity, len: 0 });
        Ok(())
    }

    /// Gives a slot's memory back. Freeing a free slot is fine.
    pub fn free(&mut self, slot: usize) {
        if let Some(entry) = self.slots.get_mut(slot) {
            *entry = None;
        }
    }

    /// Positions written to a slot so far; 0 for a free one.
    pub fn len(&self, slot: usize) -> usize {
        self.slots.get(slot).and_then(Option::as_ref).map_or(0, |slot| slot.len)
    }

    /// Positions a slot was allocated for; 0 for a free one.
    pub fn capacity(&self, slot: usize) -> usize {
        self.slots.get(slot).and_then(Option::as_ref).map_or(0, |slot| slot.capacity)
    }

    /// Slots in the table, free or not.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Whether no slot is allocated.
    pub fn is_empty(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// Bytes held by all slots.
    pub fn bytes(&self) -> usize {
        self.slots.iter().flatten().map(|slot| self.slot_bytes(slot.capacity)).sum()
    }

    /// Storage type.
    pub fn dtype(&self) -> KvDtype {
        self.dtype
    }

    /// Forgets positions from `len` on; a longer `len` changes nothing.
    ///
    /// # Errors
    /// [`Error::NoSuchSlot`] for a free or unknown slot.
    pub fn truncate(&mut self, slot: usize, len: usize) -> Result<(), Error> {
        let slots = self.slots.len();
        let entry = self.slots.get_mut(slot).and_then(Option::as_mut).ok_or(Error::NoSuchSlot { slot, slots })?;
        entry.len = entry.len.min(len);
        Ok(())
    }

    /// Writes one position's keys and values (`kv_heads * head_dim` each, k already rotated) of `layer`. The slot's
    /// length becomes at least `position + 1`; rewriting an earlier position is allowed (replay), a hole isn't.
    ///
    /// # Errors
    /// [`Error::NoSuchSlot`]; [`Error::Position`] for a hole or beyond the capacity.
    ///
    /// # Panics
    /// If `layer`, `k` or `v` don't fit the table's shape.
    pub fn append(&mut self, layer: usize, slot: usize, position: usize, k: &[f32], v: &[f32]) -> Result<(), Error> {
        let (heads, dim, width) = (self.kv_heads, self.head_dim, self.value_width());
        assert!(layer < self.layers && k.len() == heads * dim && v.len() == heads * dim, "append: shapes differ");
        let slots = self.slots.len();
        let entry = self.slots.get_mut(slot).and_then(Option::as_mut).ok_or(Error::NoSuchSlot { slot, slots })?;
        let (len, capacity) = (entry.len, entry.capacity);
        if position > len || position >= capacity {
            return Err(Error::Position { slot, position, len, capacity });
        }
        entry.len = len.max(position + 1);
        for head in 0..heads {
            let base = (layer * heads + head) * entry.padded;
            let keys = base * dim + position / PANEL * PANEL * dim;
            for (d, &value) in k[head * dim..(head + 1) * dim].iter().enumerate() {
                entry.keys.set(keys + d * PANEL, position % PANEL, value);
            }
            let values = base * width + position * PANEL;
            for (d, &value) in v[head * dim..(head + 1) * dim].iter().enumerate() {
                entry.values.set(values + d / PANEL * PANEL * entry.padded, d % PANEL, value);
            }
        }
        Ok(())
    }

    pub(crate) fn slot(&self, slot: usize) -> Option<&Slot> {
        self.slots.get(slot).and_then(Option::as_ref)
    }

    /// (layers, kv heads, head dim, head dim rounded up to whole panels).
    pub(crate) fn shape(&self) -> (usize, usize, usize, usize) {
        (self.layers, self.kv_heads, self.head_dim, self.value_width())
    }

    fn value_width(&self) -> usize {
        self.head_dim.next_multiple_of(PANEL)
    }
}
