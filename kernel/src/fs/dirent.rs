//! Directory entries as `getdents64(2)` gives them.

use crate::abi::errno::Errno;
use alloc::vec::Vec;
use core::mem::offset_of;
use hermit_abi::dirent64;

const NAME: usize = offset_of!(dirent64, d_name);
const ALIGN: usize = align_of::<dirent64>();

/// Makes the records of entries: name, inode number, `DT_*`.
pub fn encode<'a>(entries: impl Iterator<Item = (&'a [u8], u64, u8)>) -> Result<Vec<u8>, Errno> {
    let mut records: Vec<u8> = Vec::new();
    for (name, inode, kind) in entries {
        let len = (NAME + name.len() + 1).next_multiple_of(ALIGN);
        let record_len = u16::try_from(len).map_err(|_| Errno::ENAMETOOLONG)?;
        records.try_reserve(len).map_err(|_| Errno::ENOMEM)?;
        let end = records.len() + len;
        records.extend_from_slice(&inode.to_ne_bytes());
        records.extend_from_slice(&(end as i64).to_ne_bytes());
        records.extend_from_slice(&record_len.to_ne_bytes());
        records.push(kind);
        records.extend_from_slice(name);
        records.resize(end, 0);
    }
    Ok(records)
}

/// Gives all records at once, or `EINVAL` when there is no room for all.
pub fn fill(records: &[u8], buf: &mut [u8]) -> Result<usize, Errno> {
    let target = buf.get_mut(..records.len()).ok_or(Errno::EINVAL)?;
    target.copy_from_slice(records);
    Ok(records.len())
}

const _: () = {
    assert!(offset_of!(dirent64, d_ino) == 0);
    assert!(offset_of!(dirent64, d_off) == 8);
    assert!(offset_of!(dirent64, d_reclen) == 16);
    assert!(offset_of!(dirent64, d_type) == 18);
    assert!(NAME == 19);
};
