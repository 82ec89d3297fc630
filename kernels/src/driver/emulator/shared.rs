//! Shared memory of one block: dynamic and static variables, each between guards, NaN until written.

use super::memory::{UNWRITTEN, damage, redden};

const GUARD: usize = 256;
const ALIGN: usize = 128;
/// What static variables may take on every architecture; more must be dynamic.
const STATIC_LIMIT: usize = 48 << 10;
/// Room for so many variables' guards and alignment.
const MAX_VARIABLES: usize = 64;
/// Addresses of shared memory on a GPU count from a multiple of this; the patterns of its tiles do.
const LINE: usize = 1024;

struct Variable {
    site: usize,
    name: &'static str,
    start: usize,
    bytes: usize,
}

pub(super) struct Shared {
    memory: Vec<Line>,
    dynamic: usize,
    limit: usize,
    variables: Vec<Variable>,
    /// Everything below is laid out; whatever is above has no owner yet.
    end: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(1024))]
struct Line([u8; LINE]);

impl Shared {
    pub fn new(dynamic: usize, limit: usize) -> Shared {
        let bytes = 2 * GUARD + dynamic + STATIC_LIMIT + MAX_VARIABLES * (GUARD + ALIGN);
        Shared { memory: vec![Line([0; LINE]); bytes.div_ceil(LINE)], dynamic, limit, variables: Vec::new(), end: 0 }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let n = self.memory.len() * LINE;
        // SAFETY: `Line` is plain bytes without padding.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), n) }
    }

    /// A new block: nothing is written yet.
    pub fn reset(&mut self) {
        self.variables.clear();
        let dynamic = self.dynamic;
        let bytes = self.bytes();
        redden(&mut bytes[..GUARD]);
        bytes[GUARD..GUARD + dynamic].fill(UNWRITTEN);
        redden(&mut bytes[GUARD + dynamic..2 * GUARD + dynamic]);
        self.end = 2 * GUARD + dynamic;
    }

    pub fn dynamic(&mut self) -> *mut u8 {
        // SAFETY: one past the front guard, inside the buffer.
        unsafe { self.memory.as_mut_ptr().cast::<u8>().add(GUARD) }
    }

    /// First and last address, guards included.
    pub fn range(&self) -> (usize, usize) {
        let start = self.memory.as_ptr() as usize;
        (start, start + self.memory.len() * LINE)
    }

    /// Whether `bytes` at `address` belong to one variable.
    pub fn inside(&self, address: usize, bytes: usize) -> bool {
        let at = address - self.memory.as_ptr() as usize;
        let variables = self.variables.iter().map(|v| (v.start, v.bytes)).chain([(GUARD, self.dynamic)]);
        variables.into_iter().any(|(start, size)| at >= start && at + bytes <= start + size)
    }

    /// The variable declared at `site`; made when its first thread reaches the declaration.
    pub fn variable(&mut self, site: usize, name: &'static str, bytes: usize, align: usize) -> Result<*mut u8, String> {
        let known = self.variables.iter().find(|v| v.site == site && v.bytes == bytes).map(|v| v.start);
        let start = match known {
            Some(start) => start,
            None => self.place(site, name, bytes, align)?,
        };
        // SAFETY: inside the buffer.
        Ok(unsafe { self.memory.as_mut_ptr().cast::<u8>().add(start) })
    }

    fn place(&mut self, site: usize, name: &'static str, bytes: usize, align: usize) -> Result<usize, String> {
        let used = self.variables.iter().map(|v| v.bytes).sum::<usize>() + bytes;
        if used > STATIC_LIMIT {
            return Err(format!("{used} bytes of static shared memory with {name}; the limit is {STATIC_LIMIT}"));
        }
        if used + self.dynamic > self.limit {
            return Err(format!("{used} bytes of static and {} of dynamic shared memory exceed {}", self.dynamic, self.limit));
        }
        if self.variables.len() == MAX_VARIABLES || align > ALIGN {
            return Err(format!("{name}: the emulator lays out at most {MAX_VARIABLES} variables, aligned to {ALIGN} bytes or less"));
        }
        let start = self.end.next_multiple_of(ALIGN);
        let previous = self.end;
        let all = self.bytes();
        redden(&mut all[previous..start]);
        all[start..start + bytes].fill(UNWRITTEN);
        redden(&mut all[start + bytes..start + bytes + GUARD]);
        self.variables.push(Variable { site, name, start, bytes });
        self.end = start + bytes + GUARD;
        Ok(start)
    }

    /// What has been written outside every variable, if anything.
    pub fn check(&mut self) -> Option<String> {
        let (dynamic, end) = (self.dynamic, self.end);
        let variables = std::mem::take(&mut self.variables);
        let bytes = self.bytes();
        let mut found = damage(&bytes[..GUARD]).map(|(_, last)| format!("{} bytes before dynamic shared memory", GUARD - last));
        let mut after = (GUARD + dynamic, format!("dynamic shared memory of {dynamic} bytes"));
        for variable in variables.iter().map(Some).chain([None]) {
            let until = variable.map_or(end, |v| v.start);
            if let Some((first, _)) = damage(&bytes[after.0..until]) {
                found = found.or_else(|| Some(format!("{first} bytes past the end of {}", after.1)));
            }
            if let Some(v) = variable {
                after = (v.start + v.bytes, format!("__shared__ {} of {} bytes", v.name, v.bytes));
            }
        }
        self.variables = variables;
        found.map(|what| format!("wrote {what}"))
    }
}
