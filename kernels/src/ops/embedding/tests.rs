use super::*;
use crate::ops::elementwise;
use crate::ops::testing::{check_emulator, check_gradient, devices, float_types, normal, tensor};

fn integers(device: &Device, values: &[i32], shape: [usize; 2]) -> Tensor {
    Tensor::from_slice(device, values, shape).unwrap()
}

#[test]
fn rows_are_added_and_minus_one_adds_nothing() -> Result<()> {
    let weight = tensor(&[1.0, 2.0, 10.0, 20.0, 100.0, 200.0], [3, 2]);
    let tables = Tables::new(&Device::Cpu, &[1, 2])?;
    let ids = integers(&Device::Cpu, &[9, 0, 1, 9, -1, 0, 9, -1, -1], [3, 3]);
    assert_eq!(forward(&weight, &tables, (&ids, 1), None)?.to_f64()?, [101.0, 202.0, 10.0, 20.0, 0.0, 0.0]);
    let onto = tensor(&[5.0, 5.0, 0.5, 0.25, 5.0, 5.0, 0.5, 0.25, 5.0, 5.0, 0.5, 0.25], [3, 2, 2]);
    assert_eq!(forward(&weight, &tables, (&ids, 1), Some((&onto, 1)))?.to_f64()?, [101.5, 202.25, 10.5, 20.25, 0.5, 0.25]);
    Ok(())
}

/// In f32 on every device, whatever the tables are stored in, and rounded once.
#[test]
fn the_sum_is_that_of_adding_row_after_row_bit_for_bit() -> Result<()> {
    let (batch, sizes, dim) = (5, [9usize; 17], 40);
    let values = normal([9 * 17, dim], 1);
    let ids: Vec<i32> = (0..batch * 17).map(|i| (i * i % 10) as i32 - 1).collect();
    for device in devices()? {
        for &dtype in float_types(&device).iter().filter(|&&dtype| dtype != DType::F64) {
            let weight = Tensor::from_f64(&device, dtype, &values.to_f64()?, [9 * 17, dim])?;
            let stored: Vec<f32> = weight.to_f64()?.into_iter().map(|v| v as f32).collect();
            let mut sums = vec![0.0f32; batch * dim];
            for (i, &id) in ids.iter().enumerate().filter(|(_, id)| **id >= 0) {
                let row = &stored[(i % 17 * 9 + id as usize) * dim..][..dim];
                sums[i / 17 * dim..][..dim].iter_mut().zip(row).for_each(|(s, v)| *s += v);
            }
            let expected = Tensor::from_f64(&Device::Cpu, dtype, &sums.iter().map(|&s| s as f64).collect::<Vec<_>>(), [batch, dim])?;
            let found = forward(&weight, &Tables::new(&device, &sizes)?, (&integers(&device, &ids, [batch, 17]), 0), None)?;
            assert!(found.to_f64()? == expected.to_f64()?, "{device:?} {dtype}");
        }
    }
    Ok(())
}

#[test]
fn tables_in_bf16_on_the_cpu_give_f32() -> Result<()> {
    let weight = elementwise::convert(&elementwise::convert(&normal([5, 33], 3), DType::F32)?, DType::BF16)?;
    let tables = Tables::new(&Device::Cpu, &[5])?;
    let ids = integers(&Device::Cpu, &[3, 0], [2, 1]);
    let y = forward(&weight, &tables, (&ids, 0), None)?;
    assert_eq!(y.dtype(), DType::F32);
    assert_eq!(y.to_f64()?[..33], weight.to_f64()?[3 * 33..4 * 33]);
    Ok(())
}

#[test]
fn the_gradient_matches_differences() -> Result<()> {
    let tables = Tables::new(&Device::Cpu, &[3, 1, 4])?;
    let ids = integers(&Device::Cpu, &[0, 0, 3, 2, -1, 3, 0, 0, -1, 1, 0, 3], [4, 3]);
    check_gradient(
        &[normal([8, 5], 1)],
        |i| forward(&i[0], &tables, (&ids, 0), None),
        |i, dy| {
            let mut gradient = Tensor::zeros(&Device::Cpu, DType::F64, i[0].shape())?;
            backward(&mut gradient, &tables, dy, (&ids, 0))?;
            Ok(vec![Some(gradient)])
        },
    );
    Ok(())
}

/// A captured step takes the ids of its own time.
#[test]
fn a_replay_reads_the_ids_that_are_there_then() -> Result<()> {
    let Device::Cuda(gpu) = Device::open("emulator")? else { unreachable!("the emulator is a CUDA device") };
    let device = Device::Cuda(gpu.clone());
    let weight = Tensor::from_slice(&device, &[1.0f32, 2.0, 3.0], [3, 1])?;
    let tables = Tables::new(&device, &[3])?;
    let mut ids = integers(&device, &[0, 1], [2, 1]);
    let (graph, y) = gpu.capture(|| forward(&weight, &tables, (&ids, 0), None))?;
    for now in [[2, 0], [1, 1], [-1, 2]] {
        ids.write(&now)?;
        graph.replay()?;
        assert_eq!(y.to_vec::<f32>()?, now.map(|id| (id + 1) as f32));
    }
    Ok(())
}

#[test]
fn an_id_of_two_tables_is_split() -> Result<()> {
    for device in devices()? {
        let ids = integers(&device, &[3, 70, 7 + 3, 71, -1, 72, 7 * 7 + 6, 73, -2, 74, 0, 75], [6, 2]);
        let expected = [3, -1, 70, 3, 0, 71, -1, -1, 72, 6, 6, 73, -2, -1, 74, 0, -1, 75];
        assert_eq!(split(&ids, 7)?.to_vec::<i32>()?, expected, "{device:?}");
        assert_eq!(split(&integers(&device, &[i32::MAX], [1, 1]), 46_340)?.to_vec::<i32>()?, [41_707, 46_340], "{device:?}");
        assert_eq!(*split(&integers(&device, &[], [0, 2]), 7)?.shape(), [0, 3]);
        assert!(split(&ids, 0).is_err() && split(&ids, 1 << 31).is_err());
        assert!(split(&integers(&device, &[], [2, 0]), 7).is_err());
    }
    assert!(split(&normal([2, 2], 1), 7).is_err());
    Ok(())
}

#[test]
fn what_does_not_fit_is_an_error() -> Result<()> {
    let cpu = Device::Cpu;
    for sizes in [&[][..], &[usize::MAX], &[1 << 30, 1 << 30]] {
        assert!(Tables::new(&cpu, sizes).is_err(), "{sizes:?}");
    }
    let tables = Tables::new(&cpu, &[3, 2])?;
    assert_eq!((tables.rows(), tables.sizes()), (5, &[3, 2][..]));
    assert!(tables.check(&[0, 1, -1, -1, 2, 1]).is_ok());
    for ids in [&[0, 2][..], &[3, 0], &[-2, 0], &[0, i32::MIN], &[i32::MAX, 0], &[0]] {
        assert!(tables.check(ids).is_err(), "{ids:?}");
        if ids.len() == 2 {
            let ids = integers(&cpu, ids, [1, 2]);
            assert!(forward(&normal([5, 4], 1), &tables, (&ids, 0), None).is_err());
            assert!(backward(&mut normal([5, 4], 1), &tables, &normal([1, 4], 2), (&ids, 0)).is_err());
        }
    }
    let (weight, ids) = (normal([5, 4], 1), integers(&cpu, &[0, 1, 0, 1], [2, 2]));
    assert!(forward(&normal([4, 4], 1), &tables, (&ids, 0), None).is_err());
    assert!(forward(&normal([5], 1), &tables, (&ids, 0), None).is_err());
    assert!(forward(&ids, &tables, (&ids, 0), None).is_err());
    for first in [1, 2, usize::MAX] {
        assert!(forward(&weight, &tables, (&ids, first), None).is_err(), "{first}");
    }
    assert!(forward(&weight, &tables, (&weight, 0), None).is_err());
    let onto = |shape: [usize; 3], slot| forward(&weight, &tables, (&ids, 0), Some((&normal(shape, 2), slot)));
    assert!(onto([2, 1, 4], 0).is_ok());
    assert!(onto([2, 1, 4], 1).is_err() && onto([1, 1, 4], 0).is_err() && onto([2, 1, 3], 0).is_err());
    let single = elementwise::convert(&normal([2, 1, 4], 2), DType::F32)?;
    assert!(forward(&weight, &tables, (&ids, 0), Some((&single, 0))).is_err());
    assert!(backward(&mut normal([5, 4], 1), &tables, &normal([2, 3], 2), (&ids, 0)).is_err());
    assert!(backward(&mut normal([5, 4], 1), &tables, &normal([1, 4], 2), (&ids, 0)).is_err());
    Ok(())
}

#[test]
fn the_emulator_computes_the_same() {
    check_emulator(&OP);
}
