//! The right side of a product as it reads it: in panels of columns, as values, or as codes of few bits that become values on the way.

use half::bf16;

use crate::cpu::prefetch;
use crate::cpu::vector::Vector;
use crate::quantized::{self, Bits, Quantized};
use crate::{DType, Device, Element, Error, Real, Result, Tensor};

/// What panels hold.
#[derive(Clone, Copy)]
pub(super) enum Stored<'a, T> {
    Same(&'a [T]),
    Half(&'a [bf16]),
    Codes(Bits, Codes<'a>),
}

/// In panels of [`WIDE`] columns. Scales and minima, if there are any, are `[groups, WIDE]` in a panel.
#[derive(Clone, Copy)]
pub(super) struct Codes<'a> {
    pub codes: &'a [u8],
    pub scales: &'a [f32],
    pub mins: Option<&'a [f32]>,
    /// Rows that share a scale.
    pub group: usize,
}

/// Row-major `B[depth, columns]` as the product reads it: in panels of columns.
#[derive(Clone, Copy)]
pub struct Panels<'a, T> {
    pub(super) data: Stored<'a, T>,
    pub(super) depth: usize,
    pub(super) columns: usize,
    pub(super) panel_width: usize,
    pub(super) panel_stride: usize,
    pub(super) row_stride: usize,
}

impl<'a, T: Real> Panels<'a, T> {
    /// Uses `b` where it lies. Only for columns in whole vectors; [`Packed`] is faster when many rows share one `B`.
    pub fn in_place(b: &'a [T], depth: usize, columns: usize) -> Option<Self> {
        (columns.is_multiple_of(16) && b.len() >= depth * columns).then_some(Panels {
            data: Stored::Same(b),
            depth,
            columns,
            panel_width: WIDE,
            panel_stride: WIDE,
            row_stride: columns,
        })
    }

    /// Packs rows that `write(p, first, row)` writes from column `first` on into `storage` of [`packed_len`] elements.
    pub fn pack(storage: &'a mut [T], depth: usize, columns: usize, write: impl Fn(usize, usize, &mut [T])) -> Self {
        pack(storage, depth, columns, write);
        Self::packed(Stored::Same(storage), depth, columns)
    }

    /// Those of another group: see [`Packed::grouped`]. Codes have none.
    pub fn group(self, group: usize) -> Self {
        let at = group * packed_len(self.depth, self.columns);
        let data = match self.data {
            Stored::Same(data) => Stored::Same(&data[at..]),
            Stored::Half(data) => Stored::Half(&data[at..]),
            Stored::Codes(..) => self.data,
        };
        Panels { data, ..self }
    }

    pub(super) fn count(&self) -> usize {
        self.columns.div_ceil(self.panel_width)
    }

    fn packed(data: Stored<'a, T>, depth: usize, columns: usize) -> Self {
        let width = panel_width(columns);
        Panels { data, depth, columns, panel_width: width, panel_stride: depth * width, row_stride: width }
    }
}

/// See [`Panels::pack`].
fn pack<W: Element>(storage: &mut [W], depth: usize, columns: usize, write: impl Fn(usize, usize, &mut [W])) {
    let width = panel_width(columns);
    for (j, panel) in storage.chunks_exact_mut((depth * width).max(1)).enumerate() {
        let n = width.min(columns - j * width);
        for (p, row) in panel.chunks_exact_mut(width).enumerate() {
            write(p, j * width, &mut row[..n]);
            row[n..].fill(W::default());
        }
    }
}

/// Columns of a panel; half of them where there are no more. A multiple of every vector here.
pub(super) const WIDE: usize = quantized::Panels::ROWS;

fn panel_width(columns: usize) -> usize {
    if columns <= WIDE / 2 { WIDE / 2 } else { WIDE }
}

/// Elements of `[depth, columns]` in panels.
pub fn packed_len(depth: usize, columns: usize) -> usize {
    columns.next_multiple_of(panel_width(columns)) * depth
}

/// `B[depth, columns]` cut into panels, each contiguous, the last padded with zeros; or as many such as there are groups. Stored as
/// given: in f32, f64 or bf16, or as codes.
pub struct Packed {
    data: Tensor,
    depth: usize,
    columns: usize,
    scaling: Option<Scaling>,
}

/// What makes values of codes.
struct Scaling {
    bits: Bits,
    scales: Tensor,
    mins: Option<Tensor>,
    group: usize,
}

impl Packed {
    /// Packs row-major `b` with `row_stride` elements from row to row.
    pub fn new<W: Element>(b: &[W], depth: usize, columns: usize, row_stride: usize) -> Result<Packed> {
        Self::from_rows(depth, columns, |p, first, row: &mut [W]| row.copy_from_slice(&b[p * row_stride + first..][..row.len()]))
    }

    /// `write(p, first, row)` writes `B[p, first..]`.
    pub fn from_rows<W: Element>(depth: usize, columns: usize, write: impl Fn(usize, usize, &mut [W])) -> Result<Packed> {
        Self::grouped(1, depth, columns, |_, p, first, row| write(p, first, row))
    }

    /// `write(group, p, first, row)` writes `B[p, first..]` of a group.
    pub fn grouped<W: Element>(
        groups: usize,
        depth: usize,
        columns: usize,
        write: impl Fn(usize, usize, usize, &mut [W]),
    ) -> Result<Packed> {
        let size = packed_len(depth, columns);
        let mut data = Tensor::empty(&Device::Cpu, W::DTYPE, [groups, size])?;
        for (group, storage) in data.as_mut_slice::<W>()?.chunks_exact_mut(size.max(1)).enumerate() {
            pack(storage, depth, columns, |p, first, row| write(group, p, first, row));
        }
        Ok(Packed { data, depth, columns, scaling: None })
    }

    /// `B` is the transpose of `weight`, on the CPU.
    ///
    /// # Errors
    /// What does not fit together, or is elsewhere.
    pub fn quantized(weight: &Quantized) -> Result<Packed> {
        let (columns, depth) = weight.extents("gemm")?;
        let group = depth / weight.scales.shape().last_dim();
        let (panels, bits) = (columns.div_ceil(WIDE), weight.bits);
        let (codes, row_bytes) = (weight.codes.as_slice::<u8>()?, bits.bytes(depth));
        let mut data = Tensor::empty(&Device::Cpu, DType::U8, [panels, depth, bits.bytes(WIDE)])?;
        let rows = codes.chunks_exact(row_bytes);
        for (i, panel) in data.as_mut_slice::<u8>()?.chunks_exact_mut((depth * bits.bytes(WIDE)).max(1)).enumerate() {
            let mut of_panel: [&[u8]; WIDE] = [&[]; WIDE];
            of_panel.iter_mut().zip(rows.clone().skip(i * WIDE)).for_each(|(to, row)| *to = row);
            match bits {
                Bits::Eight => pack_bytes(panel, &of_panel),
                Bits::Four => pack_nibbles(panel, &of_panel),
            }
        }
        let packed = |of: &Tensor| -> Result<Tensor> {
            let (of, groups) = (of.as_slice::<f32>()?, depth / group);
            let mut packed = Tensor::zeros(&Device::Cpu, DType::F32, [panels, groups, WIDE])?;
            for (at, to) in packed.as_mut_slice::<f32>()?.iter_mut().enumerate() {
                let n = at / (groups * WIDE) * WIDE + at % WIDE;
                if n < columns {
                    *to = of[n * groups + at / WIDE % groups];
                }
            }
            Ok(packed)
        };
        let scaling = Scaling { bits, scales: packed(&weight.scales)?, mins: weight.mins.as_ref().map(packed).transpose()?, group };
        Ok(Packed { data, depth, columns, scaling: Some(scaling) })
    }

    /// As [`quantized`](Self::quantized), of codes that are in panels.
    ///
    /// # Errors
    /// As there.
    pub fn of_panels(weight: quantized::Panels) -> Result<Packed> {
        let (columns, depth) = weight.extents("gemm")?;
        let quantized::Panels { bits, codes, scales, mins } = weight;
        let group = depth / scales.shape()[1];
        Ok(Packed { data: codes, depth, columns, scaling: Some(Scaling { bits, scales, mins, group }) })
    }

    /// Of what is stored.
    pub fn bytes(&self) -> usize {
        let scaling = self.scaling.iter().flat_map(|s| std::iter::once(&s.scales).chain(&s.mins));
        self.data.bytes() + scaling.map(Tensor::bytes).sum::<usize>()
    }

    /// Those of the first group, for products in `T`.
    ///
    /// # Errors
    /// Stored in another type, other than bf16 for products in f32, or codes.
    pub fn panels<T: Real>(&self) -> Result<Panels<'_, T>> {
        if let Some(Scaling { bits, scales, mins, group }) = &self.scaling {
            let mins = mins.as_ref().map(Tensor::as_slice).transpose()?;
            let codes = Codes { codes: self.data.as_slice()?, scales: scales.as_slice()?, mins, group: *group };
            return Ok(Panels {
                data: Stored::Codes(*bits, codes),
                depth: self.depth,
                columns: self.columns,
                panel_width: WIDE,
                panel_stride: self.depth * bits.bytes(WIDE),
                row_stride: bits.bytes(WIDE),
            });
        }
        let data = match (T::DTYPE, self.data.dtype()) {
            (DType::F32, DType::BF16) => Stored::Half(self.data.as_slice()?),
            (computed, stored) if computed == stored => Stored::Same(self.data.as_slice()?),
            (computed, stored) => return Err(Error::dtype("gemm", "B", computed.name(), stored)),
        };
        Ok(Panels::packed(data, self.depth, self.columns))
    }
}

/// Rows and columns of bytes that are transposed at once.
const BLOCK: usize = 8;

/// Bytes of `row` from `at` on; zeros beyond its end.
fn bytes_from(row: &[u8], at: usize) -> u64 {
    let rest = row.get(at..).unwrap_or_default();
    match rest.first_chunk::<BLOCK>() {
        Some(&bytes) => u64::from_le_bytes(bytes),
        None => rest.iter().rev().fold(0, |bytes, &byte| bytes << 8 | u64::from(byte)),
    }
}

/// Byte `j` of row `i` becomes byte `i` of row `j`.
fn transpose(mut rows: [u64; BLOCK]) -> [u64; BLOCK] {
    for (apart, mask) in [(4, 0x0000_0000_ffff_ffff), (2, 0x0000_ffff_0000_ffff), (1, 0x00ff_00ff_00ff_00ff)] {
        let bits = 8 * apart;
        for i in (0..BLOCK).filter(|i| i & apart == 0) {
            let swapped = (rows[i] >> bits ^ rows[i + apart]) & mask;
            rows[i + apart] ^= swapped;
            rows[i] ^= swapped << bits;
        }
    }
    rows
}

/// `panel [K, WIDE]` of the rows `[K]` of codes, some of which may be empty.
fn pack_bytes(panel: &mut [u8], rows: &[&[u8]; WIDE]) {
    for (block, panel) in panel.chunks_mut(BLOCK * WIDE).enumerate() {
        for (i, rows) in rows.as_chunks::<BLOCK>().0.iter().enumerate() {
            let columns = transpose(rows.map(|row| bytes_from(row, block * BLOCK)));
            for (to, codes) in panel.chunks_exact_mut(WIDE).zip(columns) {
                to[i * BLOCK..][..BLOCK].copy_from_slice(&codes.to_le_bytes());
            }
        }
    }
}

/// `panel [K, WIDE / 2]` of the rows `[K / 2]` of pairs of codes: columns `i` and `i + WIDE / 2` share a byte.
fn pack_nibbles(panel: &mut [u8], rows: &[&[u8]; WIDE]) {
    const LOW: u64 = 0x0f0f_0f0f_0f0f_0f0f;
    const HALF: usize = WIDE / 2;
    let (low, high) = rows.split_at(HALF);
    for (block, panel) in panel.chunks_mut(2 * BLOCK * HALF).enumerate() {
        for i in (0..HALF).step_by(BLOCK) {
            let pair = |n: usize| [low, high].map(|rows| bytes_from(rows[i + n], block * BLOCK));
            let pairs: [[u64; 2]; BLOCK] = std::array::from_fn(pair);
            let even = transpose(pairs.map(|[a, b]| a & LOW | (b & LOW) << 4));
            let odd = transpose(pairs.map(|[a, b]| a >> 4 & LOW | b & !LOW));
            for (to, codes) in panel.chunks_exact_mut(HALF).zip(even.into_iter().zip(odd).flat_map(|(even, odd)| [even, odd])) {
                to[i..][..BLOCK].copy_from_slice(&codes.to_le_bytes());
            }
        }
    }
}

/// What panels hold, by the pointers that tiles read it through.
pub(super) trait Store: Copy {
    /// Whether rows may reach into the next panel.
    const SPANS: bool;

    /// The rows of a panel from column `first` on.
    ///
    /// # Safety
    /// The panel is there, and the next if the rows reach into it.
    unsafe fn rows<V: Vector, const NV: usize>(self, panel: usize, first: usize) -> impl Rows<V, NV>;
}

/// Rows of a panel, one after the other.
pub(super) trait Rows<V, const NV: usize> {
    /// # Safety
    /// There is another one, and the CPU has the registers.
    unsafe fn next(&mut self) -> [V; NV];
}

/// Bytes of a panel that are fetched before they are needed.
const AHEAD: usize = 4096;

/// Values in f32, f64 or bf16.
#[derive(Clone, Copy)]
pub(super) struct Values<W> {
    pub data: *const W,
    pub panel_stride: usize,
    pub row_stride: usize,
}

impl<W: Element> Store for Values<W> {
    const SPANS: bool = false;

    #[inline(always)]
    unsafe fn rows<V: Vector, const NV: usize>(self, panel: usize, first: usize) -> impl Rows<V, NV> {
        Values { data: self.data.wrapping_add(panel * self.panel_stride + first), ..self }
    }
}

impl<V: Vector, W: Element, const NV: usize> Rows<V, NV> for Values<W> {
    #[inline(always)]
    unsafe fn next(&mut self) -> [V; NV] {
        let at = self.data;
        self.data = at.wrapping_add(self.row_stride);
        // SAFETY: the caller's.
        unsafe {
            let mut row = [V::single(0.0); NV];
            for (v, row) in row.iter_mut().enumerate() {
                *row = V::widen(at.add(v * V::LANES));
                if (v * V::LANES * size_of::<W>()).is_multiple_of(64) {
                    prefetch(at.wrapping_add(AHEAD / size_of::<W>() + v * V::LANES));
                }
            }
            row
        }
    }
}

/// Codes of four or eight `BITS`.
#[derive(Clone, Copy)]
pub(super) struct Coded<const BITS: usize> {
    pub codes: *const u8,
    pub scales: *const f32,
    /// None: null.
    pub mins: *const f32,
    pub panel_stride: usize,
    pub depth: usize,
    pub group: usize,
}

struct CodedRows<V, const NV: usize, const BITS: usize> {
    store: Coded<BITS>,
    first: usize,
    /// Rows until the next scales.
    left: usize,
    scale: [V; NV],
    /// What is added to a scaled code.
    start: [V; NV],
}

impl<const BITS: usize> Store for Coded<BITS> {
    const SPANS: bool = true;

    #[inline(always)]
    unsafe fn rows<V: Vector, const NV: usize>(self, panel: usize, first: usize) -> impl Rows<V, NV> {
        let scaling = panel * (self.depth / self.group) * WIDE + first;
        let mins = if self.mins.is_null() { self.mins } else { self.mins.wrapping_add(scaling) };
        let codes = self.codes.wrapping_add(panel * self.panel_stride);
        // SAFETY: the caller's.
        let nothing = unsafe { V::single(0.0) };
        CodedRows {
            store: Coded { codes, scales: self.scales.wrapping_add(scaling), mins, ..self },
            // Known to the compiler where a tile is whole panels.
            first: if (NV * V::LANES).is_multiple_of(WIDE) { 0 } else { first },
            left: 0,
            scale: [nothing; NV],
            start: [nothing; NV],
        }
    }
}

impl<V: Vector, const NV: usize, const BITS: usize> Rows<V, NV> for CodedRows<V, NV, BITS> {
    #[inline(always)]
    unsafe fn next(&mut self) -> [V; NV] {
        let Coded { codes, scales, mins, panel_stride, depth, group } = self.store;
        let panel = |v: usize| (self.first + v * V::LANES) / WIDE;
        // SAFETY: the caller's.
        unsafe {
            if self.left == 0 {
                self.left = group;
                for v in 0..NV {
                    let at = panel(v) * (depth / group) * WIDE + v * V::LANES % WIDE;
                    self.scale[v] = V::widen(scales.add(at));
                    self.start[v] = match (mins.is_null(), BITS) {
                        (true, 4) => V::single(0.0).fma(V::single(-8.0), self.scale[v]),
                        (true, _) => V::single(0.0),
                        (false, _) => V::single(0.0).fma(V::single(-1.0), V::widen(mins.add(at))),
                    };
                }
                self.store.scales = scales.wrapping_add(WIDE);
                if !mins.is_null() {
                    self.store.mins = mins.wrapping_add(WIDE);
                }
            }
            self.left -= 1;
            self.store.codes = codes.wrapping_add(WIDE * BITS / 8);
            for panel in 0..panel(NV - 1) + 1 {
                prefetch(codes.wrapping_add(panel * panel_stride + AHEAD));
            }
            let mut row = [V::single(0.0); NV];
            for (v, row) in row.iter_mut().enumerate() {
                let (codes, column) = (codes.add(panel(v) * panel_stride), (self.first + v * V::LANES) % WIDE);
                let code = match BITS {
                    4 => V::nibbles(codes.add(column % (WIDE / 2)), column >= WIDE / 2),
                    _ => V::bytes(codes.add(column).cast()),
                };
                *row = code.scaled(self.scale[v], self.start[v]);
            }
            row
        }
    }
}
