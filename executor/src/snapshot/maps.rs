//! What is mapped where in a process.

use std::{fs, io, path::Path};

/// An area of memory, as in `/proc/PID/smaps`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Map {
    pub(super) begin: usize,
    pub(super) end: usize,
    /// Such as `r-xp`.
    pub(super) access: String,
    pub(super) offset: u64,
    /// The path of a file, the name of what the kernel has there in brackets, or nothing.
    pub(super) name: String,
    /// What else the kernel keeps of it, as words of two letters.
    pub(super) flags: Vec<String>,
}

impl Map {
    pub(super) fn has_flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|has| has == flag)
    }
}

/// All that is mapped in the process of this directory.
pub(super) fn of(process: &Path) -> io::Result<Vec<Map>> {
    parse(&fs::read_to_string(process.join("smaps"))?).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Each area has a line with what it is, which begins in lower case, and lines of figures, which do not.
fn parse(text: &str) -> Option<Vec<Map>> {
    let mut maps: Vec<Map> = Vec::new();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            maps.last_mut()?.flags = flags.split_whitespace().map(str::to_owned).collect();
        } else if !line.starts_with(|first: char| first.is_ascii_uppercase()) {
            maps.push(parse_area(line)?);
        }
    }
    Some(maps)
}

fn parse_area(line: &str) -> Option<Map> {
    let mut words = line.splitn(6, ' ');
    let (begin, end) = range(words.next()?)?;
    let (access, offset) = (words.next()?.to_owned(), u64::from_str_radix(words.next()?, 16).ok()?);
    let name = words.nth(2).unwrap_or_default().trim_start().to_owned();
    Some(Map { begin, end, access, offset, name, flags: Vec::new() })
}

/// Where an area begins and ends, as it is written at the beginning of a line.
pub(super) fn range(word: &str) -> Option<(usize, usize)> {
    let (begin, end) = word.split_once('-')?;
    Some((usize::from_str_radix(begin, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_read_with_and_without_a_name() {
        let text = "00400000-0041f000 r--p 0001f000 fe:00 3258          /usr/bin/a program\n\
                    Size:                124 kB\nVmFlags: rd mr wf \n\
                    7f00-7f01 rw-p 00000000 00:00 0 \nRss: 0 kB\n";
        let [file, nameless] = parse(text).unwrap().try_into().unwrap();
        assert_eq!((file.begin, file.end, file.offset), (0x40_0000, 0x41_f000, 0x1_f000));
        assert_eq!((file.access.as_str(), file.name.as_str()), ("r--p", "/usr/bin/a program"));
        assert!(file.has_flag("wf") && !file.has_flag("w"));
        assert!(nameless.name.is_empty() && nameless.flags.is_empty());
        assert!(parse("nothing").is_none() && parse("VmFlags: rd").is_none());
        assert!(of(Path::new("/proc/self")).unwrap().iter().any(|map| map.name == "[stack]"));
    }
}
