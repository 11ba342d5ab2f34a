//! The KV cache of one stage: per layer and slot, keys and values in the same panel layout as the weights, so that
//! attention is two of the same matrix products. A stage owns one; slots are allocated for exactly the positions a
//! sequence will need, which is known when it is admitted.
//!
//! Per (slot, layer, kv head): keys as `capacity / 32` panels of 32 positions x head_dim steps; values as
//! `head_dim / 32` panels of 32 dimensions x capacity steps.

use crate::Error;
use crate::aligned::AlignedBuf;
use crate::attention::{AttnRow, Rows};
use crate::packed::{PANEL, bf16_lane, f32_to_bf16};
use crate::pool::Pool;

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

    /// Copies `len` values.
    fn copy(&mut self, to: usize, source: &Store, from: usize, len: usize) {
        match (self, source) {
            (Store::F32(target), Store::F32(source)) => target[to..to + len].copy_from_slice(&source[from..from + len]),
            (Store::Bf16(target), Store::Bf16(source)) => target[to..to + len].copy_from_slice(&source[from..from + len]),
            _ => unreachable!("a table has one type"),
        }
    }

    fn address(&mut self) -> *mut u8 {
        match self {
            Store::F32(values) => values.as_mut_ptr().cast(),
            Store::Bf16(values) => values.as_mut_ptr().cast(),
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
    /// Length once the rows being checked are written.
    planned: usize,
}

/// Where one position of one slot goes: pointers to layer and slot, valid for the whole table's shape.
#[derive(Clone, Copy)]
struct Place {
    keys: *mut u8,
    values: *mut u8,
    padded: usize,
    position: usize,
}

/// Keys and values of `layers` layers for a table of slots.
pub struct KvSlots {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    dtype: KvDtype,
    slots: Vec<Option<Slot>>,
    /// Places of the rows being written; kept so that a step doesn't allocate.
    places: Vec<Place>,
}

// SAFETY: the pointers in `places` are only followed inside `append_rows`, under its &mut self.
unsafe impl Send for KvSlots {}
// SAFETY: as above; everything else is Sync by itself.
unsafe impl Sync for KvSlots {}

impl KvSlots {
    /// A table of `slots` free slots.
    pub fn new(slots: usize, layers: usize, kv_heads: usize, head_dim: usize, dtype: KvDtype) -> Self {
        Self { layers, kv_heads, head_dim, dtype, slots: (0..slots).map(|_| None).collect(), places: Vec::new() }
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
        self.slots[slot] = Some(Slot { padded, keys, values, capacity, len: 0, planned: 0 });
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

    /// Writes the first `len` positions of slot `from` to slot `to`, bit for bit, all layers; `to` holds at least these
    /// afterwards, and what it held beyond them.
    ///
    /// # Errors
    /// [`Error::NoSuchSlot`] for a free or unknown slot; [`Error::Position`] if `from` holds fewer positions than `len`, or
    /// `to` has no room for them.
    pub fn copy(&mut self, from: usize, to: usize, len: usize) -> Result<(), Error> {
        let slots = self.slots.len();
        let free = |slot| Error::NoSuchSlot { slot, slots };
        let mut target = self.slots.get_mut(to).and_then(Option::take).ok_or(free(to))?;
        let copied = match self.slot(from) {
            None => Err(free(from)),
            Some(source) => {
                let short =
                    |slot, of: &Slot| Error::Position { slot, position: len - 1, len: of.len, capacity: of.capacity };
                match len {
                    0 => Ok(()),
                    _ if len > source.len => Err(short(from, source)),
                    _ if len > target.capacity => Err(short(to, &target)),
                    _ => {
                        self.copy_positions(source, &mut target, len);
                        target.len = target.len.max(len);
                        Ok(())
                    }
                }
            }
        };
        self.slots[to] = Some(target);
        copied
    }

    /// Forgets positions from `len` on and gives their memory back: the slot has no room for more afterwards.
    ///
    /// # Errors
    /// [`Error::NoSuchSlot`] for a free or unknown slot.
    pub fn shrink(&mut self, slot: usize, len: usize) -> Result<(), Error> {
        self.truncate(slot, len)?;
        let Some(old) = self.slots.get_mut(slot).and_then(Option::take) else { return Ok(()) };
        self.allocate(slot, old.len)?;
        let Some(mut new) = self.slots[slot].take() else { return Ok(()) };
        self.copy_positions(&old, &mut new, old.len);
        new.len = old.len;
        self.slots[slot] = Some(new);
        Ok(())
    }

    /// Whole panels of keys: what they hold beyond `len` is never read, because a slot's length says what is there.
    fn copy_positions(&self, source: &Slot, target: &mut Slot, len: usize) {
        let (dim, width) = (self.head_dim, self.value_width());
        let panels = len.next_multiple_of(PANEL);
        let (padded, room) = (source.padded, target.padded);
        for head in 0..self.layers * self.kv_heads {
            target.keys.copy(head * room * dim, &source.keys, head * padded * dim, panels * dim);
            for panel in 0..width / PANEL {
                let (to, from) =
                    (head * room * width + panel * PANEL * room, head * padded * width + panel * PANEL * padded);
                target.values.copy(to, &source.values, from, len * PANEL);
            }
        }
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
        let width = self.kv_heads * self.head_dim;
        assert!(layer < self.layers && k.len() == width && v.len() == width, "append: shapes differ");
        self.check(&[AttnRow { slot, position }])?;
        let place = self.place(slot, position)?;
        for head in 0..self.kv_heads {
            // SAFETY: the position lies inside the slot, and &mut self makes us its only user.
            unsafe { self.write(layer, head, place, k, v) };
        }
        Ok(())
    }

    /// [`append`](Self::append) for all rows of a step, spread over the pool. Either all are written or, on an error,
    /// none.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    ///
    /// # Panics
    /// If `layer`, `k` or `v` don't fit the table's shape.
    pub fn append_rows(
        &mut self,
        pool: &Pool,
        layer: usize,
        rows: &[AttnRow],
        k: Rows<'_>,
        v: Rows<'_>,
    ) -> Result<(), Error> {
        let width = self.kv_heads * self.head_dim;
        assert!(layer < self.layers && k.holds(rows.len(), width) && v.holds(rows.len(), width), "append: shapes differ");
        self.check(rows)?;
        self.places.clear();
        for row in rows {
            let place = self.place(row.slot, row.position)?;
            self.places.push(place);
        }
        let this = &*self;
        pool.run(this.kv_heads, |head| {
            for (index, &place) in this.places.iter().enumerate() {
                // SAFETY: the position lies inside the slot; &mut self keeps others out and tasks own their heads.
                unsafe { this.write(layer, head, place, k.row(index, width), v.row(index, width)) };
            }
        });
        Ok(())
    }

    /// Checks that `rows`, written in order, leave no hole and fit, then counts them as written.
    fn check(&mut self, rows: &[AttnRow]) -> Result<(), Error> {
        let slots = self.slots.len();
        for row in rows {
            if let Some(entry) = self.slots.get_mut(row.slot).and_then(Option::as_mut) {
                entry.planned = entry.len;
            }
        }
        for &AttnRow { slot, position } in rows {
            let entry = self.slots.get_mut(slot).and_then(Option::as_mut).ok_or(Error::NoSuchSlot { slot, slots })?;
            let (len, capacity) = (entry.planned, entry.capacity);
            if position > len || position >= capacity {
                return Err(Error::Position { slot, position, len, capacity });
            }
            entry.planned = len.max(position + 1);
        }
        for row in rows {
            if let Some(entry) = self.slots.get_mut(row.slot).and_then(Option::as_mut) {
                entry.len = entry.planned;
            }
        }
        Ok(())
    }

    fn place(&mut self, slot: usize, position: usize) -> Result<Place, Error> {
        let slots = self.slots.len();
        let entry = self.slots.get_mut(slot).and_then(Option::as_mut).ok_or(Error::NoSuchSlot { slot, slots })?;
        Ok(Place { keys: entry.keys.address(), values: entry.values.address(), padded: entry.padded, position })
    }

    /// Writes one head of a position.
    ///
    /// # Safety
    /// `place` is current and inside its slot; nobody else uses this head of it.
    unsafe fn write(&self, layer: usize, head: usize, place: Place, k: &[f32], v: &[f32]) {
        let (dim, width) = (self.head_dim, self.value_width());
        let (k, v) = (&k[head * dim..(head + 1) * dim], &v[head * dim..(head + 1) * dim]);
        let (panel, lane) = (place.position / PANEL, place.position % PANEL);
        let base = (layer * self.kv_heads + head) * place.padded;
        let keys = base * dim + panel * PANEL * dim;
        let values = base * width + place.position * PANEL;
        // SAFETY: the head's part is `padded * dim` keys and `padded * width` values from `base` times that on.
        unsafe {
            match self.dtype {
                KvDtype::F32 => {
                    let keys = place.keys.cast::<f32>().add(keys + lane);
                    let values = place.values.cast::<f32>().add(values);
                    for (d, (&k, &v)) in k.iter().zip(v).enumerate() {
                        *keys.add(d * PANEL) = k;
                        *values.add(d / PANEL * PANEL * place.padded + d % PANEL) = v;
                    }
                }
                KvDtype::Bf16 => {
                    let keys = place.keys.cast::<u16>().add(keys + bf16_lane(lane));
                    let values = place.values.cast::<u16>().add(values);
                    for (d, (&k, &v)) in k.iter().zip(v).enumerate() {
                        *keys.add(d * PANEL) = f32_to_bf16(k);
                        *values.add(d / PANEL * PANEL * place.padded + bf16_lane(d % PANEL)) = f32_to_bf16(v);
                    }
                }
            }
        }
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
