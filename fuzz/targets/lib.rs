//! What the targets share.

use swara_loader::weights::Weights;

/// `data` as a safetensors file: from a header and what follows it, the length of the header is put before; a length that the
/// fuzzer would have to guess hides all the rest. Data that begin with a 0 are taken as they are.
pub fn safetensors(data: &[u8]) -> Vec<u8> {
    match data {
        [0, whole @ ..] => whole.to_vec(),
        _ => {
            let header = data.iter().rposition(|&b| b == b'}').map_or(data.len(), |end| end + 1);
            [&(header as u64).to_le_bytes()[..], data].concat()
        }
    }
}

/// Reads every tensor in every way.
pub fn read_all(weights: &Weights) {
    for (name, shape) in weights.shapes() {
        let (dtype, described) = weights.info(&name).expect("a name that the file gave");
        assert_eq!(described, shape);
        if let Ok(view) = weights.view(&name) {
            assert_eq!((view.dtype, view.shape), (dtype, &shape[..]));
            assert_eq!(view.bytes.len(), shape.iter().product::<usize>() / dtype.block() * dtype.size());
            assert!(weights.to_f32(&name).is_err() || weights.to_f32(&name).is_ok_and(|v| v.len() == view.count()));
        }
        let _ = (weights.to_i32(&name), weights.to_u64(&name));
        // A packed layer goes by the name that its weight had.
        for name in [name.replace("qweight", "weight"), name.replace("panels", "weight"), name] {
            let _ = weights.panels(&name, Some(&(0..32)));
            if let Ok(Some(matrix)) = weights.quantized(&name) {
                assert_eq!(matrix.dequantize().len(), matrix.rows() * matrix.columns());
            }
        }
    }
}
