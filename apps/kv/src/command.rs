//! The commands: a table, and what each does.

use crate::arena::Full;
use crate::glob;
use crate::resp::{Arguments, Reply, integer};
use crate::service::Limits;
use crate::store::{Store, Value};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// What a client has said of itself.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Client {
    /// Its number, from 1.
    pub id: u64,
    /// Its name, set by `CLIENT SETNAME`.
    pub name: Vec<u8>,
    /// It has said `QUIT`.
    pub quits: bool,
}

/// What a command works on.
pub struct Context<'a, 's> {
    /// The keys.
    pub store: &'a mut Store<'s>,
    /// Who asks.
    pub client: &'a mut Client,
    /// What is allowed.
    pub limits: &'a Limits,
    /// The time of day, in ms since 1970.
    pub wall_ms: u64,
    /// What `INFO` says besides what is known here: whole lines.
    pub info: &'a dyn Fn() -> String,
    /// Where the reply goes.
    pub out: &'a mut Vec<u8>,
}

/// Why a command was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    Syntax,
    Integer,
    Float,
    Overflow,
    NotFinite,
    Arguments,
    ExpireTime,
    TooLong,
    TooMuch,
    Memory,
    Text(String),
}

impl From<Full> for Fault {
    fn from(Full: Full) -> Self {
        Self::Memory
    }
}

type Outcome = Result<(), Fault>;

/// A command.
struct Command {
    /// Upper case.
    name: &'static str,
    /// Number of arguments, the name among them; negative: at least so many.
    arity: i8,
    /// It may need more memory.
    grows: bool,
    run: fn(&mut Context<'_, '_>, Arguments<'_>) -> Outcome,
}

const fn command(
    name: &'static str,
    arity: i8,
    grows: bool,
    run: fn(&mut Context<'_, '_>, Arguments<'_>) -> Outcome,
) -> Command {
    Command {
        name,
        arity,
        grows,
        run,
    }
}

/// By name.
static COMMANDS: &[Command] = &[
    command("APPEND", 3, true, append),
    command("CLIENT", -2, false, client),
    command("COMMAND", -1, false, command_command),
    command("CONFIG", -2, false, config),
    command("DBSIZE", 1, false, dbsize),
    command("DECR", 2, true, |c, a| count(c, a, 0, -1)),
    command("DECRBY", 3, true, |c, a| count(c, a, 2, -1)),
    command("DEL", -2, false, del),
    command("ECHO", 2, false, echo),
    command("EXISTS", -2, false, exists),
    command("EXPIRE", -3, false, |c, a| expire(c, a, 1000, false)),
    command("EXPIREAT", -3, false, |c, a| expire(c, a, 1000, true)),
    command("FLUSHALL", -1, false, flush),
    command("FLUSHDB", -1, false, flush),
    command("GET", 2, false, get),
    command("GETDEL", 2, false, getdel),
    command("GETRANGE", 4, false, getrange),
    command("GETSET", 3, true, getset),
    command("HELLO", -1, false, hello),
    command("INCR", 2, true, |c, a| count(c, a, 0, 1)),
    command("INCRBY", 3, true, |c, a| count(c, a, 2, 1)),
    command("INCRBYFLOAT", 3, true, count_float),
    command("INFO", -1, false, info),
    command("KEYS", 2, false, keys),
    command("MGET", -2, false, mget),
    command("MSET", -3, true, mset),
    command("PERSIST", 2, false, persist),
    command("PEXPIRE", -3, false, |c, a| expire(c, a, 1, false)),
    command("PEXPIREAT", -3, false, |c, a| expire(c, a, 1, true)),
    command("PING", -1, false, ping),
    command("PSETEX", 4, true, |c, a| setex(c, a, 1)),
    command("PTTL", 2, false, |c, a| ttl(c, a, 1)),
    command("QUIT", -1, false, quit),
    command("SCAN", -2, false, scan),
    command("SELECT", 2, false, select),
    command("SET", -3, true, set),
    command("SETEX", 4, true, |c, a| setex(c, a, 1000)),
    command("SETNX", 3, true, setnx),
    command("SETRANGE", 4, true, setrange),
    command("STRLEN", 2, false, strlen),
    command("TIME", 1, false, time),
    command("TTL", 2, false, |c, a| ttl(c, a, 1000)),
    command("TYPE", 2, false, type_of),
    command("UNLINK", -2, false, del),
];

/// Longest name of a command.
const MAX_NAME: usize = 16;

fn find(name: &[u8]) -> Option<&'static Command> {
    let mut upper = [0; MAX_NAME];
    let upper = upper.get_mut(..name.len())?;
    upper.copy_from_slice(name);
    upper.make_ascii_uppercase();
    let upper = &*upper;
    let at = COMMANDS.binary_search_by(|command| command.name.as_bytes().cmp(upper));
    COMMANDS.get(at.ok()?)
}

/// Does what a request asks for and writes the reply.
pub fn execute(context: &mut Context<'_, '_>, arguments: Arguments<'_>) {
    let Some(command) = find(arguments.get(0)) else {
        return unknown(context.out, arguments);
    };
    let start = context.out.len();
    let (given, arity) = (arguments.len(), usize::from(command.arity.unsigned_abs()));
    let fits = if command.arity < 0 {
        given >= arity
    } else {
        given == arity
    };
    let outcome = if !fits {
        Err(Fault::Arguments)
    } else if command.grows && !has_room(context, arguments) {
        Err(Fault::Memory)
    } else {
        (command.run)(context, arguments)
    };
    if let Err(fault) = outcome {
        // Half an array may have been written.
        context.out.truncate(start);
        let name = command.name.to_ascii_lowercase();
        context.out.error(wording(&fault, &name).as_bytes());
    }
}

fn has_room(context: &Context<'_, '_>, arguments: Arguments<'_>) -> bool {
    let new: usize = arguments.from(1).map(<[u8]>::len).sum();
    context.store.used().saturating_add(new) <= context.limits.memory
}

fn wording(fault: &Fault, name: &str) -> String {
    match fault {
        Fault::Syntax => "ERR syntax error".into(),
        Fault::Integer => "ERR value is not an integer or out of range".into(),
        Fault::Float => "ERR value is not a valid float".into(),
        Fault::Overflow => "ERR increment or decrement would overflow".into(),
        Fault::NotFinite => "ERR increment would produce NaN or Infinity".into(),
        Fault::Arguments => format!("ERR wrong number of arguments for '{name}' command"),
        Fault::ExpireTime => format!("ERR invalid expire time in '{name}' command"),
        Fault::TooLong => "ERR string exceeds maximum allowed size (proto-max-bulk-len)".into(),
        Fault::TooMuch => "ERR the reply would be too large".into(),
        Fault::Memory => "OOM command not allowed when used memory > 'maxmemory'.".into(),
        Fault::Text(text) => text.clone(),
    }
}

/// Redis tells the name and the arguments up to some length.
fn unknown(out: &mut Vec<u8>, arguments: Arguments<'_>) {
    let cut = |bytes: &[u8], most: usize| {
        String::from_utf8_lossy(bytes.get(..most).unwrap_or(bytes)).into_owned()
    };
    let mut text = format!(
        "ERR unknown command '{}', with args beginning with: ",
        cut(arguments.get(0), 128)
    );
    let mut left = 128;
    for argument in arguments.from(1) {
        let _ = write!(text, "'{}' ", cut(argument, left));
        left = left.saturating_sub(argument.len());
        if left == 0 {
            break;
        }
    }
    out.error(text.as_bytes());
}

fn number(text: &[u8]) -> Result<i64, Fault> {
    integer(text).ok_or(Fault::Integer)
}

fn is(argument: &[u8], word: &str) -> bool {
    argument.eq_ignore_ascii_case(word.as_bytes())
}

fn value(out: &mut Vec<u8>, value: Option<Value<'_>>) {
    match value {
        Some(value) => value.with_bytes(|bytes| out.bulk(bytes)),
        None => out.null(),
    }
}

impl Context<'_, '_> {
    /// When something expires that does so in `amount` units, or at that time of day.
    fn deadline(&self, amount: i64, unit_ms: i64, of_day: bool) -> Option<i64> {
        let ms = amount.checked_mul(unit_ms)?;
        let now = i64::try_from(self.store.now()).ok()?;
        match of_day {
            true => ms
                .checked_sub(i64::try_from(self.wall_ms).ok()?)?
                .checked_add(now),
            false => ms.checked_add(now),
        }
    }

    fn too_much(&self, start: usize) -> bool {
        self.out.len() - start > self.limits.reply
    }
}

fn append(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let (key, tail) = (a.get(1), a.get(2));
    let len = c.store.get(key).map_or(0, |value| value.len()) + tail.len();
    if len > c.limits.value {
        return Err(Fault::TooLong);
    }
    let len = c.store.append(key, tail)?;
    c.out.integer(len as i64);
    Ok(())
}

fn client(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let subcommand = a.get(1);
    match a.len() {
        2 if is(subcommand, "ID") => c.out.integer(c.client.id as i64),
        2 if is(subcommand, "GETNAME") => match &c.client.name[..] {
            b"" => c.out.null(),
            name => c.out.bulk(name),
        },
        3 if is(subcommand, "SETNAME") => {
            let name = a.get(2);
            if name.iter().any(|b| !b.is_ascii_graphic()) {
                let text =
                    "ERR Client names cannot contain spaces, newlines or special characters.";
                return Err(Fault::Text(text.into()));
            }
            c.client.name = name.to_vec();
            c.out.simple("OK");
        }
        // Names of libraries: taken, and not kept.
        4 if is(subcommand, "SETINFO") => c.out.simple("OK"),
        2 if is(subcommand, "INFO") => {
            let name = String::from_utf8_lossy(&c.client.name).into_owned();
            c.out
                .bulk(format!("id={} name={name} db=0\n", c.client.id).as_bytes());
        }
        _ => return Err(unknown_subcommand("CLIENT", subcommand)),
    }
    Ok(())
}

fn unknown_subcommand(command: &str, subcommand: &[u8]) -> Fault {
    let subcommand = subcommand.get(..128).unwrap_or(subcommand);
    Fault::Text(format!(
        "ERR unknown subcommand or wrong number of arguments for '{}'. Try {command} HELP.",
        String::from_utf8_lossy(subcommand)
    ))
}

fn command_command(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let describe = |out: &mut Vec<u8>, command: Option<&Command>| match command {
        None => out.extend_from_slice(b"*-1\r\n"),
        Some(command) => {
            out.array(6);
            out.bulk(command.name.to_ascii_lowercase().as_bytes());
            out.integer(command.arity.into());
            out.array(0);
            for _ in 0..3 {
                out.integer(0);
            }
        }
    };
    let subcommand = a.get(1);
    if a.len() == 1 {
        c.out.array(COMMANDS.len());
        for command in COMMANDS {
            describe(c.out, Some(command));
        }
    } else if is(subcommand, "COUNT") && a.len() == 2 {
        c.out.integer(COMMANDS.len() as i64);
    } else if is(subcommand, "INFO") {
        c.out.array(a.len() - 2);
        for name in a.from(2) {
            describe(c.out, find(name));
        }
    } else if is(subcommand, "LIST") && a.len() == 2 {
        c.out.array(COMMANDS.len());
        for command in COMMANDS {
            c.out.bulk(command.name.to_ascii_lowercase().as_bytes());
        }
    } else if is(subcommand, "DOCS") {
        // There are none; redis-cli then has no hints.
        c.out.array(0);
    } else {
        return Err(unknown_subcommand("COMMAND", subcommand));
    }
    Ok(())
}

fn config(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    if is(a.get(1), "GET") && a.len() >= 3 {
        let known = [
            ("appendonly", "no".to_owned()),
            ("databases", "1".to_owned()),
            ("maxmemory", c.limits.memory.to_string()),
            ("maxmemory-policy", "noeviction".to_owned()),
            ("proto-max-bulk-len", c.limits.value.to_string()),
            ("save", String::new()),
            ("timeout", c.limits.idle.as_secs().to_string()),
        ];
        let asked = |name: &str| {
            a.from(2)
                .any(|pattern| glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes()))
        };
        let found: Vec<_> = known.iter().filter(|(name, _)| asked(name)).collect();
        c.out.array(2 * found.len());
        for (name, value) in found {
            c.out.bulk(name.as_bytes());
            c.out.bulk(value.as_bytes());
        }
        return Ok(());
    }
    Err(unknown_subcommand("CONFIG", a.get(1)))
}

fn dbsize(c: &mut Context<'_, '_>, _: Arguments<'_>) -> Outcome {
    c.out.integer(c.store.len() as i64);
    Ok(())
}

fn count(c: &mut Context<'_, '_>, a: Arguments<'_>, by: usize, sign: i64) -> Outcome {
    let key = a.get(1);
    let by = if by == 0 { 1 } else { number(a.get(by))? };
    // -(-2^63) is no number.
    let by = by
        .checked_mul(sign)
        .ok_or_else(|| Fault::Text("ERR decrement would overflow".into()))?;
    let old = match c.store.get(key) {
        None => 0,
        Some(Value::Integer(old)) => old,
        // Put together by APPEND.
        Some(Value::Bytes(bytes)) => number(bytes)?,
    };
    let new = old.checked_add(by).ok_or(Fault::Overflow)?;
    if !c.store.replace(key, Value::Integer(new))? {
        c.store.set(key, Value::Integer(new), None)?;
    }
    c.out.integer(new);
    Ok(())
}

fn float(text: &[u8]) -> Result<f64, Fault> {
    let text = std::str::from_utf8(text).map_err(|_| Fault::Float)?;
    let number: f64 = text.parse().map_err(|_| Fault::Float)?;
    if number.is_nan() {
        return Err(Fault::Float);
    }
    Ok(number)
}

fn count_float(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let key = a.get(1);
    let old = match c.store.get(key) {
        None => 0.0,
        Some(value) => value.with_bytes(float)?,
    };
    let new = old + float(a.get(2))?;
    if !new.is_finite() {
        return Err(Fault::NotFinite);
    }
    let text = new.to_string();
    let new = Value::new(text.as_bytes());
    if !c.store.replace(key, new)? {
        c.store.set(key, new, None)?;
    }
    c.out.bulk(text.as_bytes());
    Ok(())
}

fn del(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let gone = a.from(1).filter(|key| c.store.delete(key)).count();
    c.out.integer(gone as i64);
    Ok(())
}

fn echo(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    c.out.bulk(a.get(1));
    Ok(())
}

fn exists(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let there = a.from(1).filter(|key| c.store.get(key).is_some()).count();
    c.out.integer(there as i64);
    Ok(())
}

fn expire(c: &mut Context<'_, '_>, a: Arguments<'_>, unit_ms: i64, of_day: bool) -> Outcome {
    let key = a.get(1);
    let amount = number(a.get(2))?;
    let at = c
        .deadline(amount, unit_ms, of_day)
        .ok_or(Fault::ExpireTime)?;
    let (mut nx, mut xx, mut gt, mut lt) = (false, false, false, false);
    for option in a.from(3) {
        match option {
            o if is(o, "NX") => nx = true,
            o if is(o, "XX") => xx = true,
            o if is(o, "GT") => gt = true,
            o if is(o, "LT") => lt = true,
            o => {
                let option = String::from_utf8_lossy(o);
                return Err(Fault::Text(format!("ERR Unsupported option {option}")));
            }
        }
    }
    if nx && (xx || gt || lt) {
        let text = "ERR NX and XX, GT or LT options at the same time are not compatible";
        return Err(Fault::Text(text.into()));
    }
    if gt && lt {
        let text = "ERR GT and LT options at the same time are not compatible";
        return Err(Fault::Text(text.into()));
    }
    let Some(old) = c.store.expiry(key) else {
        c.out.integer(0);
        return Ok(());
    };
    let old_at = old.and_then(|old| i64::try_from(old).ok());
    let refused = (nx && old.is_some())
        || (xx && old.is_none())
        || (gt && old_at.is_none_or(|old| at <= old))
        || (lt && old_at.is_some_and(|old| at >= old));
    if refused {
        c.out.integer(0);
        return Ok(());
    }
    match u64::try_from(at) {
        Ok(at) if at > c.store.now() => c.store.set_expiry(key, Some(at)),
        // In the past.
        _ => c.store.delete(key),
    };
    c.out.integer(1);
    Ok(())
}

fn flush(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    match a.len() {
        1 => {}
        2 if is(a.get(1), "ASYNC") || is(a.get(1), "SYNC") => {}
        _ => return Err(Fault::Syntax),
    }
    c.store.clear();
    c.out.simple("OK");
    Ok(())
}

fn get(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    value(c.out, c.store.get(a.get(1)));
    Ok(())
}

fn getdel(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let key = a.get(1);
    value(c.out, c.store.get(key));
    c.store.delete(key);
    Ok(())
}

fn getrange(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let (start, end) = (number(a.get(2))?, number(a.get(3))?);
    let Some(value) = c.store.get(a.get(1)) else {
        c.out.bulk(b"");
        return Ok(());
    };
    value.with_bytes(|bytes| {
        let len = bytes.len() as i64;
        let at = |index: i64| {
            if index < 0 {
                (len + index).max(0)
            } else {
                index
            }
        };
        // Of two negative ones in the wrong order, nothing, also before they are cut.
        let wrong = start < 0 && end < 0 && start > end;
        let range = at(start) as usize..(at(end).saturating_add(1).min(len)) as usize;
        let part = if wrong { None } else { bytes.get(range) };
        c.out.bulk(part.unwrap_or_default());
    });
    Ok(())
}

fn setrange(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let (key, bytes) = (a.get(1), a.get(3));
    let from = usize::try_from(number(a.get(2))?)
        .map_err(|_| Fault::Text("ERR offset is out of range".to_owned()))?;
    let len = if bytes.is_empty() {
        // It makes neither a key nor zeros.
        c.store.get(key).map_or(0, |value| value.len())
    } else {
        if from.saturating_add(bytes.len()) > c.limits.value {
            return Err(Fault::TooLong);
        }
        c.store.set_range(key, from, bytes)?
    };
    c.out.integer(len as i64);
    Ok(())
}

fn getset(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let key = a.get(1);
    value(c.out, c.store.get(key));
    c.store.set(key, Value::new(a.get(2)), None)?;
    Ok(())
}

fn hello(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let mut rest = a.from(1);
    if let Some(version) = rest.next() {
        match integer(version) {
            Some(2) => {}
            Some(_) => {
                let text = "NOPROTO unsupported protocol version";
                return Err(Fault::Text(text.into()));
            }
            None => {
                let text = "ERR Protocol version is not an integer or out of range";
                return Err(Fault::Text(text.into()));
            }
        }
    }
    while let Some(option) = rest.next() {
        match rest.next() {
            Some(name) if is(option, "SETNAME") => c.client.name = name.to_vec(),
            _ => return Err(Fault::Syntax),
        }
    }
    let out = &mut *c.out;
    out.array(14);
    for (key, value) in [("server", "redis"), ("version", VERSION)] {
        out.bulk(key.as_bytes());
        out.bulk(value.as_bytes());
    }
    out.bulk(b"proto");
    out.integer(2);
    out.bulk(b"id");
    out.integer(c.client.id as i64);
    for (key, value) in [("mode", "standalone"), ("role", "master")] {
        out.bulk(key.as_bytes());
        out.bulk(value.as_bytes());
    }
    out.bulk(b"modules");
    out.array(0);
    Ok(())
}

/// The version of Redis whose words this server uses.
pub const VERSION: &str = "7.0.0";

fn info(c: &mut Context<'_, '_>, _: Arguments<'_>) -> Outcome {
    let mut text = format!("# Server\r\nredis_version:{VERSION}\r\nredis_mode:standalone\r\n");
    text += &(c.info)();
    let _ = write!(
        text,
        "\r\n# Memory\r\nused_memory:{}\r\nmaxmemory:{}\r\nmaxmemory_policy:noeviction\r\n\
         \r\n# Persistence\r\nloading:0\r\naof_enabled:0\r\n\
         \r\n# Replication\r\nrole:master\r\nconnected_slaves:0\r\n\
         \r\n# Keyspace\r\n",
        c.store.used(),
        c.limits.memory
    );
    let (keys, expires) = (c.store.len(), c.store.expiring());
    if keys > 0 {
        let _ = write!(text, "db0:keys={keys},expires={expires},avg_ttl=0\r\n");
    }
    c.out.bulk(text.as_bytes());
    Ok(())
}

fn keys(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let pattern = a.get(1);
    // Their number stands before them: found first, written then.
    let found = |store: &Store<'_>| {
        let keys = store.keys().filter(|key| glob::matches(pattern, key));
        keys.fold((0, 0), |(count, bytes), key| {
            (count + 1, bytes + key.len() + 16)
        })
    };
    let (count, bytes) = found(c.store);
    if bytes > c.limits.reply {
        return Err(Fault::TooMuch);
    }
    c.out.array(count);
    for key in c.store.keys().filter(|key| glob::matches(pattern, key)) {
        c.out.bulk(key);
    }
    Ok(())
}

fn mget(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let start = c.out.len();
    c.out.array(a.len() - 1);
    for key in a.from(1) {
        value(c.out, c.store.get(key));
        if c.too_much(start) {
            return Err(Fault::TooMuch);
        }
    }
    Ok(())
}

fn mset(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    if a.len().is_multiple_of(2) {
        return Err(Fault::Arguments);
    }
    let mut rest = a.from(1);
    while let (Some(key), Some(bytes)) = (rest.next(), rest.next()) {
        c.store.set(key, Value::new(bytes), None)?;
    }
    c.out.simple("OK");
    Ok(())
}

fn persist(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let key = a.get(1);
    let had = c.store.expiry(key).flatten().is_some();
    if had {
        c.store.set_expiry(key, None);
    }
    c.out.integer(i64::from(had));
    Ok(())
}

fn ping(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    match a.len() {
        1 => c.out.simple("PONG"),
        2 => c.out.bulk(a.get(1)),
        _ => return Err(Fault::Arguments),
    }
    Ok(())
}

fn quit(c: &mut Context<'_, '_>, _: Arguments<'_>) -> Outcome {
    c.client.quits = true;
    c.out.simple("OK");
    Ok(())
}

fn scan(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let cursor = std::str::from_utf8(a.get(1))
        .ok()
        .and_then(|text| text.parse().ok());
    let cursor: u64 = cursor.ok_or_else(|| Fault::Text("ERR invalid cursor".into()))?;
    let (mut pattern, mut count, mut of_type) = (None, 10, true);
    let mut rest = a.from(2);
    while let Some(option) = rest.next() {
        let argument = rest.next().ok_or(Fault::Syntax)?;
        match option {
            o if is(o, "MATCH") => pattern = Some(argument),
            o if is(o, "COUNT") => {
                count = usize::try_from(number(argument)?).map_err(|_| Fault::Syntax)?;
                if count == 0 {
                    return Err(Fault::Syntax);
                }
            }
            o if is(o, "TYPE") => of_type = is(argument, "string"),
            _ => return Err(Fault::Syntax),
        }
    }
    let (keys, next) = c.store.scan(cursor, count);
    let fits = |key: &&[u8]| of_type && pattern.is_none_or(|pattern| glob::matches(pattern, key));
    let keys: Vec<&[u8]> = keys.filter(fits).collect();
    if keys.iter().map(|key| key.len() + 16).sum::<usize>() > c.limits.reply {
        return Err(Fault::TooMuch);
    }
    c.out.array(2);
    c.out.bulk(next.to_string().as_bytes());
    c.out.array(keys.len());
    for key in keys {
        c.out.bulk(key);
    }
    Ok(())
}

fn select(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    if number(a.get(1))? != 0 {
        return Err(Fault::Text("ERR DB index is out of range".into()));
    }
    c.out.simple("OK");
    Ok(())
}

fn set(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let (key, new) = (a.get(1), a.get(2));
    let (mut nx, mut xx, mut give_old, mut keep) = (false, false, false, false);
    let mut expires = None;
    let mut rest = a.from(3);
    while let Some(option) = rest.next() {
        let (unit_ms, of_day) = match option {
            o if is(o, "NX") && !xx => {
                nx = true;
                continue;
            }
            o if is(o, "XX") && !nx => {
                xx = true;
                continue;
            }
            o if is(o, "GET") => {
                give_old = true;
                continue;
            }
            o if is(o, "KEEPTTL") && expires.is_none() => {
                keep = true;
                continue;
            }
            o if is(o, "EX") => (1000, false),
            o if is(o, "PX") => (1, false),
            o if is(o, "EXAT") => (1000, true),
            o if is(o, "PXAT") => (1, true),
            _ => return Err(Fault::Syntax),
        };
        let argument = rest.next().ok_or(Fault::Syntax)?;
        if keep || expires.is_some() {
            return Err(Fault::Syntax);
        }
        expires = Some((argument, unit_ms, of_day));
    }
    let expires = match expires {
        None => None,
        Some((text, unit_ms, of_day)) => {
            let amount = number(text)?;
            let at = c.deadline(amount, unit_ms, of_day).filter(|_| amount > 0);
            Some(at.ok_or(Fault::ExpireTime)?)
        }
    };
    let old = c.store.expiry(key);
    let refused = (nx && old.is_some()) || (xx && old.is_none());
    if give_old {
        value(c.out, c.store.get(key));
    } else if refused {
        c.out.null();
    }
    if refused {
        return Ok(());
    }
    match expires {
        Some(at) => match u64::try_from(at) {
            Ok(at) if at > c.store.now() => c.store.set(key, Value::new(new), Some(at))?,
            // A time of day in the past.
            _ => drop(c.store.delete(key)),
        },
        None => {
            let kept = if keep { old.flatten() } else { None };
            c.store.set(key, Value::new(new), kept)?;
        }
    }
    if !give_old {
        c.out.simple("OK");
    }
    Ok(())
}

fn setex(c: &mut Context<'_, '_>, a: Arguments<'_>, unit_ms: i64) -> Outcome {
    let amount = number(a.get(2))?;
    let at = c.deadline(amount, unit_ms, false).filter(|_| amount > 0);
    let at = at
        .and_then(|at| u64::try_from(at).ok())
        .ok_or(Fault::ExpireTime)?;
    c.store.set(a.get(1), Value::new(a.get(3)), Some(at))?;
    c.out.simple("OK");
    Ok(())
}

fn setnx(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let key = a.get(1);
    let new = c.store.get(key).is_none();
    if new {
        c.store.set(key, Value::new(a.get(2)), None)?;
    }
    c.out.integer(i64::from(new));
    Ok(())
}

fn strlen(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let len = c.store.get(a.get(1)).map_or(0, |value| value.len());
    c.out.integer(len as i64);
    Ok(())
}

fn time(c: &mut Context<'_, '_>, _: Arguments<'_>) -> Outcome {
    c.out.array(2);
    c.out.bulk((c.wall_ms / 1000).to_string().as_bytes());
    c.out.bulk((c.wall_ms % 1000 * 1000).to_string().as_bytes());
    Ok(())
}

fn ttl(c: &mut Context<'_, '_>, a: Arguments<'_>, unit_ms: u64) -> Outcome {
    let left = match c.store.expiry(a.get(1)) {
        None => -2,
        Some(None) => -1,
        // Redis rounds to the nearest second.
        Some(Some(at)) => ((at.saturating_sub(c.store.now()) + unit_ms / 2) / unit_ms) as i64,
    };
    c.out.integer(left);
    Ok(())
}

fn type_of(c: &mut Context<'_, '_>, a: Arguments<'_>) -> Outcome {
    let there = c.store.get(a.get(1)).is_some();
    c.out.simple(if there { "string" } else { "none" });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_names_fit() {
        assert!(COMMANDS.is_sorted_by(|a, b| a.name < b.name));
        assert!(
            COMMANDS
                .iter()
                .all(|command| command.name.len() <= MAX_NAME)
        );
        assert!(find(b"get").is_some_and(|command| command.name == "GET"));
        assert!(find(b"").is_none() && find(&[b'G'; 100]).is_none());
    }
}
