//! `kernels/budget.toml`: what every kernel may cost. It shrinks by itself and grows only on purpose.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;
use swara_kernels::driver::nvrtc::target;
use swara_verify::measure::{Code, Figures};

/// Figures by op, kernel and architecture.
pub type Measured = BTreeMap<String, BTreeMap<String, BTreeMap<u32, Figures>>>;

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// The compiler that the figures are of; another one's are not comparable.
    pub nvrtc: String,
    #[serde(default)]
    pub kernels: BTreeMap<String, BTreeMap<String, Allowance>>,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Allowance {
    /// Registers a thread by architecture.
    pub registers: BTreeMap<String, u32>,
    /// Static shared memory in bytes, the most of all architectures.
    pub shared: u32,
    /// From this architecture on there are 16-byte global loads.
    pub wide_loads: Option<u32>,
    /// From this architecture on there are tensor-core instructions.
    pub mma: Option<u32>,
    /// From this architecture on there are copies of tiles by tensor maps.
    pub tile_copies: Option<u32>,
}

const HEADER: &str = "\
# What every kernel may cost, for each architecture it names: registers a thread, static shared memory in bytes; and what its
# machine code promises from some architecture on: 16-byte global loads (wide_loads), tensor cores (mma), copies of tiles by tensor
# maps (tile_copies). Spills and local memory are never allowed. Checked and, on purpose, rewritten by:
#     cargo run -p swara-verify --bin gate -- [--update]
";

impl Budget {
    pub fn of(measured: &Measured, nvrtc: String) -> Budget {
        let allowance = |archs: &BTreeMap<u32, Figures>| Allowance {
            registers: archs.iter().map(|(&arch, figures)| (target(arch), figures.registers)).collect(),
            shared: archs.values().map(|figures| figures.shared).max().unwrap_or(0),
            wide_loads: promised(archs, |code| code.wide_loads),
            mma: promised(archs, |code| code.mma),
            tile_copies: promised(archs, |code| code.tile_copies),
        };
        let op = |kernels: &BTreeMap<String, _>| kernels.iter().map(|(name, archs)| (name.clone(), allowance(archs))).collect();
        Budget { nvrtc, kernels: measured.iter().map(|(name, kernels)| (name.clone(), op(kernels))).collect() }
    }

    /// Sorted, one line a kernel.
    pub fn text(&self) -> String {
        let mut text = format!("{HEADER}nvrtc = \"{}\"\n", self.nvrtc);
        for (op, kernels) in &self.kernels {
            let _ = writeln!(text, "\n[kernels.{op}]");
            for (kernel, allowance) in kernels {
                let mut registers: Vec<_> = allowance.registers.iter().collect();
                registers.sort_by_key(|(target, _)| (target.len() - target.ends_with('a') as usize, target.as_str()));
                let registers = registers.iter().map(|(target, n)| format!("{target} = {n}")).collect::<Vec<_>>().join(", ");
                let _ = write!(text, "{kernel} = {{ registers = {{ {registers} }}, shared = {}", allowance.shared);
                for (promise, from) in
                    [("wide_loads", allowance.wide_loads), ("mma", allowance.mma), ("tile_copies", allowance.tile_copies)]
                {
                    let _ = from.map(|arch| write!(text, ", {promise} = {arch}"));
                }
                text.push_str(" }\n");
            }
        }
        text
    }

    /// Everything that is worse than the budget allows, one line each; then what is better, which wants an update.
    pub fn judge(&self, measured: &Measured) -> (Vec<String>, Vec<String>) {
        let (mut worse, mut better) = (Vec::new(), Vec::new());
        let each = measured.iter().flat_map(|(op, kernels)| kernels.iter().map(move |(kernel, archs)| (op, kernel, archs)));
        for (op, kernel, archs) in each.clone() {
            let Some(allowed) = self.kernels.get(op).and_then(|kernels| kernels.get(kernel)) else {
                worse.push(format!("{op}: {kernel} is not in the budget"));
                continue;
            };
            for (&arch, figures) in archs {
                let target = target(arch);
                match allowed.registers.get(&target) {
                    None => worse.push(format!("{op}: {kernel} on {target} is not in the budget")),
                    Some(&n) if figures.registers > n => {
                        worse.push(format!("{op}: {kernel} on {target}: {} registers, {n} allowed", figures.registers))
                    }
                    Some(&n) if figures.registers < n => {
                        better.push(format!("{op}: {kernel} on {target}: {} registers, {n} allowed", figures.registers))
                    }
                    Some(_) => {}
                }
                if figures.shared > allowed.shared {
                    worse
                        .push(format!("{op}: {kernel} on {target}: {} bytes of shared memory, {} allowed", figures.shared, allowed.shared));
                }
                let Some(code) = figures.code else { continue };
                for (what, from, count) in [
                    ("16-byte loads", allowed.wide_loads, code.wide_loads),
                    ("mma", allowed.mma, code.mma),
                    ("copies of tiles", allowed.tile_copies, code.tile_copies),
                ] {
                    if count == 0 && from.is_some_and(|from| arch >= from) {
                        worse.push(format!("{op}: {kernel} on {target}: no {what}, and they are promised"));
                    }
                }
            }
        }
        for (op, kernel) in self.kernels.iter().flat_map(|(op, kernels)| kernels.keys().map(move |kernel| (op, kernel))) {
            if !each.clone().any(|(o, k, _)| (o, k) == (op, kernel)) {
                worse.push(format!("{op}: {kernel} is in the budget and nowhere else"));
            }
        }
        (worse, better)
    }
}

/// What no budget can allow.
pub fn faults(measured: &Measured) -> Vec<String> {
    let mut faults = Vec::new();
    for (op, kernels) in measured {
        for (kernel, archs) in kernels {
            for (&arch, figures) in archs {
                let local = figures.code.map_or(0, |code| code.local);
                let Figures { stack, spilled, .. } = *figures;
                if stack > 0 || spilled > 0 || local > 0 {
                    let target = target(arch);
                    faults.push(format!(
                        "{op}: {kernel} on {target}: spills {spilled} bytes, a stack of {stack}, {local} accesses to local memory"
                    ));
                }
            }
        }
    }
    faults
}

/// The architecture from which on every one has the property; `None` if the newest has it not, or nobody looked.
fn promised(archs: &BTreeMap<u32, Figures>, count: impl Fn(&Code) -> u32) -> Option<u32> {
    archs.iter().rev().take_while(|(_, figures)| figures.code.as_ref().is_some_and(|code| count(code) > 0)).last().map(|(&arch, _)| arch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(arch: u32, figures: Figures) -> Measured {
        [("op".into(), [("k".into(), [(arch, figures)].into())].into())].into()
    }

    fn figures() -> Figures {
        let code = Code { wide_loads: 2, mma: 4, tile_copies: 3, ..Code::default() };
        Figures { registers: 32, shared: 256, code: Some(code), ..Figures::default() }
    }

    #[test]
    fn the_file_says_what_was_measured_and_is_read_back() {
        let mut measured = one(75, Figures { code: Some(Code::default()), ..figures() });
        for arch in [80, 90, 100] {
            measured.get_mut("op").unwrap().get_mut("k").unwrap().insert(arch, figures());
        }
        let budget = Budget::of(&measured, "12.9".into());
        let line = "k = { registers = { sm_75 = 32, sm_80 = 32, sm_90a = 32, sm_100 = 32 }, shared = 256, wide_loads = 80, mma = 80, \
                    tile_copies = 80 }";
        assert!(budget.text().lines().any(|l| l == line), "{}", budget.text());
        assert_eq!(toml::from_str::<Budget>(&budget.text()).unwrap(), budget);
        assert_eq!(budget.judge(&measured), (vec![], vec![]));
    }

    #[test]
    fn every_kind_of_growth_fails_and_a_gain_does_not() {
        let budget = Budget::of(&one(80, figures()), "12.9".into());
        let worse = |figures: Figures| budget.judge(&one(80, figures)).0;
        assert_eq!(worse(Figures { registers: 33, ..figures() }), ["op: k on sm_80: 33 registers, 32 allowed"]);
        assert_eq!(worse(Figures { shared: 257, ..figures() }), ["op: k on sm_80: 257 bytes of shared memory, 256 allowed"]);
        let code = |wide_loads, mma, tile_copies| {
            let code = Code { wide_loads, mma, tile_copies, ..Code::default() };
            Figures { code: Some(code), ..figures() }
        };
        assert_eq!(worse(code(0, 1, 1)), ["op: k on sm_80: no 16-byte loads, and they are promised"]);
        assert_eq!(worse(code(1, 0, 1)), ["op: k on sm_80: no mma, and they are promised"]);
        assert_eq!(worse(code(1, 1, 0)), ["op: k on sm_80: no copies of tiles, and they are promised"]);
        assert_eq!(budget.judge(&one(86, figures())).0, ["op: k on sm_86 is not in the budget"]);
        assert_eq!(budget.judge(&Measured::new()).0, ["op: k is in the budget and nowhere else"]);
        assert_eq!(Budget::default().judge(&one(80, figures())).0, ["op: k is not in the budget"]);

        let (worse, better) = budget.judge(&one(80, Figures { registers: 31, ..figures() }));
        assert_eq!((worse.len(), better.len()), (0, 1));
    }

    #[test]
    fn a_spill_is_a_fault_whatever_the_budget_says() {
        assert!(faults(&one(80, figures())).is_empty());
        assert_eq!(faults(&one(80, Figures { spilled: 8, ..figures() })).len(), 1);
        assert_eq!(faults(&one(80, Figures { stack: 8, ..figures() })).len(), 1);
        assert_eq!(faults(&one(80, Figures { code: Some(Code { local: 1, ..Code::default() }), ..figures() })).len(), 1);
    }
}
