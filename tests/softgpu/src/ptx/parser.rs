//! Tokens to syntax tree: directives, variables, functions. Every error carries the line and the text;
//! no input panics.

mod body;

use super::PtxError;
use super::ast::*;
use super::lexer::{Tok, Token, lex};

/// Parses a whole module.
pub fn parse(src: &str) -> Result<Module<'_>, PtxError> {
    let mut parser = Parser { src, tokens: lex(src)?, at: 0 };
    parser.module()
}

struct Parser<'a> {
    src: &'a str,
    tokens: Vec<Token<'a>>,
    at: usize,
}

/// What may stand before a variable or function.
#[derive(Default, Clone, Copy)]
struct Linkage {
    is_extern: bool,
}

type Result<T, E = PtxError> = std::result::Result<T, E>;

impl<'a> Parser<'a> {
    fn peek(&self) -> Tok<'a> {
        self.tokens[self.at].tok
    }

    fn peek_at(&self, ahead: usize) -> Tok<'a> {
        self.tokens[(self.at + ahead).min(self.tokens.len() - 1)].tok
    }

    fn line(&self) -> u32 {
        self.tokens[self.at].line
    }

    fn next(&mut self) -> Tok<'a> {
        let tok = self.peek();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        tok
    }

    fn error(&self, message: &str) -> PtxError {
        let t = self.tokens[self.at];
        let text = if t.tok == Tok::End { "end of text" } else { &self.src[t.start..t.end] };
        PtxError::new(t.line, message, text)
    }

    fn is(&self, c: u8) -> bool {
        self.peek() == Tok::Punct(c)
    }

    fn accept(&mut self, c: u8) -> bool {
        let found = self.is(c);
        if found {
            self.next();
        }
        found
    }

    fn expect(&mut self, c: u8) -> Result<()> {
        if self.accept(c) { Ok(()) } else { Err(self.error(&format!("expected `{}`", c as char))) }
    }

    fn ident(&mut self) -> Result<&'a str> {
        match self.peek() {
            Tok::Ident(name) => {
                self.next();
                Ok(name)
            }
            _ => Err(self.error("expected a name")),
        }
    }

    fn int(&mut self) -> Result<i64> {
        let negative = self.accept(b'-');
        match self.peek() {
            Tok::Int(value) => {
                self.next();
                Ok(if negative { value.wrapping_neg() } else { value })
            }
            _ => Err(self.error("expected an integer")),
        }
    }

    fn unsigned(&mut self) -> Result<u32> {
        let value = self.int()?;
        u32::try_from(value).map_err(|_| self.error("integer out of range before"))
    }

    fn accept_dot(&mut self, name: &str) -> bool {
        let found = self.peek() == Tok::Dot(name);
        if found {
            self.next();
        }
        found
    }

    fn module(&mut self) -> Result<Module<'a>> {
        let mut module = Module::default();
        loop {
            let line = self.line();
            match self.peek() {
                Tok::End => break,
                Tok::Punct(b';') => {
                    self.next();
                }
                Tok::Dot("version") => {
                    self.next();
                    module.version = match self.next() {
                        Tok::F64(bits) => {
                            let v = f64::from_bits(bits);
                            (v as u32, ((v * 10.0).round() as u32) % 10)
                        }
                        Tok::Int(v) => (v as u32, 0),
                        _ => return Err(PtxError::new(line, "malformed .version", "")),
                    };
                }
                Tok::Dot("target") => {
                    self.next();
                    loop {
                        let name = self.ident()?;
                        if let Some(digits) = name.strip_prefix("sm_") {
                            let digits = digits.trim_end_matches(|c: char| c.is_alphabetic());
                            module.target = digits
                                .parse()
                                .map_err(|_| PtxError::new(line, "malformed .target", name))?;
                        }
                        module.debug |= name == "debug";
                        if !self.accept(b',') {
                            break;
                        }
                    }
                }
                Tok::Dot("address_size") => {
                    self.next();
                    if self.int()? != 64 {
                        return Err(PtxError::new(line, "only .address_size 64 is supported", ""));
                    }
                }
                Tok::Dot("file") => {
                    self.next();
                    let index = self.unsigned()?;
                    if let Tok::Str(path) = self.next() {
                        module.files.push((index, path.to_string()));
                    }
                    while self.accept(b',') {
                        self.int()?;
                    }
                }
                Tok::Dot("section") => self.section()?,
                Tok::Dot("pragma") => {
                    while !self.accept(b';') {
                        if self.next() == Tok::End {
                            return Err(PtxError::new(line, "unterminated directive", ".pragma"));
                        }
                    }
                }
                Tok::Dot(_) => {
                    let linkage = self.linkage();
                    match self.peek() {
                        Tok::Dot("entry" | "func") => {
                            let func = self.func()?;
                            module.funcs.push(func);
                        }
                        Tok::Dot("global" | "const" | "shared" | "local") => {
                            self.vars(linkage, &mut module.vars)?;
                        }
                        _ => return Err(self.error("unknown directive")),
                    }
                }
                _ => return Err(self.error("expected a directive")),
            }
        }
        if module.version.0 == 0 {
            return Err(PtxError::new(1, "not a PTX module: no .version", ""));
        }
        Ok(module)
    }

    fn section(&mut self) -> Result<()> {
        let line = self.line();
        let mut depth = 0;
        loop {
            match self.next() {
                Tok::Punct(b'{') => depth += 1,
                Tok::Punct(b'}') => {
                    depth -= 1;
                    if depth <= 0 {
                        return Ok(());
                    }
                }
                Tok::End => return Err(PtxError::new(line, "unterminated .section", "")),
                _ => {}
            }
        }
    }

    fn linkage(&mut self) -> Linkage {
        let mut linkage = Linkage::default();
        loop {
            match self.peek() {
                Tok::Dot("extern") => linkage.is_extern = true,
                Tok::Dot("visible" | "weak" | "common") => {}
                _ => return linkage,
            }
            self.next();
        }
    }

    fn space(&mut self) -> Result<Space> {
        let space = match self.peek() {
            Tok::Dot("global") => Space::Global,
            Tok::Dot("const") => Space::Const,
            Tok::Dot("shared") => Space::Shared,
            Tok::Dot("local") => Space::Local,
            Tok::Dot("param") => Space::Param,
            _ => return Err(self.error("expected a state space")),
        };
        self.next();
        Ok(space)
    }

    /// Variables of one declaration, up to and including the semicolon.
    fn vars(&mut self, linkage: Linkage, out: &mut Vec<Var<'a>>) -> Result<()> {
        let (space, ty, align) = self.var_head()?;
        loop {
            out.push(self.var_tail(space, ty, align, linkage)?);
            if !self.accept(b',') {
                break;
            }
        }
        self.expect(b';')
    }

    fn var_head(&mut self) -> Result<(Space, (Type, u32), Option<u32>)> {
        let space = self.space()?;
        let mut align = None;
        let mut lanes = 1;
        loop {
            match self.peek() {
                Tok::Dot("align") => {
                    self.next();
                    let value = self.unsigned()?;
                    if !value.is_power_of_two() || value > 1 << 20 {
                        return Err(self.error("alignment is not a power of two before"));
                    }
                    align = Some(value);
                }
                Tok::Dot("v2") => {
                    self.next();
                    lanes = 2;
                }
                Tok::Dot("v4") => {
                    self.next();
                    lanes = 4;
                }
                Tok::Dot("attribute") => {
                    self.next();
                    while !self.accept(b')') {
                        if self.next() == Tok::End {
                            return Err(self.error("unterminated attribute"));
                        }
                    }
                }
                Tok::Dot(name) => {
                    let ty = Type::from_name(name).ok_or_else(|| self.error("unknown type"))?;
                    self.next();
                    // Attributes of pointer parameters describe what they point at.
                    while let Tok::Dot(attribute) = self.peek() {
                        match attribute {
                            "ptr" | "global" | "shared" | "const" | "local" => {
                                self.next();
                            }
                            "align" => {
                                self.next();
                                self.unsigned()?;
                            }
                            _ => return Err(self.error("unknown attribute")),
                        }
                    }
                    return Ok((space, (ty, lanes), align));
                }
                _ => return Err(self.error("expected a type")),
            }
        }
    }

    fn var_tail(
        &mut self,
        space: Space,
        (ty, lanes): (Type, u32),
        align: Option<u32>,
        linkage: Linkage,
    ) -> Result<Var<'a>> {
        let line = self.line();
        let name = self.ident()?;
        let element = u64::from(ty.bytes() * lanes);
        let mut bytes = element;
        let mut unsized_array = false;
        while self.accept(b'[') {
            if self.accept(b']') {
                unsized_array = true;
                continue;
            }
            let n = u64::try_from(self.int()?).map_err(|_| self.error("negative array size"))?;
            self.expect(b']')?;
            bytes = bytes
                .checked_mul(n)
                .filter(|&b| b <= 1 << 40)
                .ok_or_else(|| self.error("array too large"))?;
        }
        let mut init = Vec::new();
        if self.accept(b'=') {
            self.init(&mut init, 0)?;
        }
        if unsized_array {
            bytes = if init.is_empty() { 0 } else { element * init.len() as u64 };
        }
        if init.len() as u64 > bytes.div_ceil(u64::from(ty.bytes())) {
            return Err(PtxError::new(line, "more initialisers than elements", name));
        }
        let align = align.unwrap_or(ty.bytes() * lanes);
        Ok(Var { line, space, ty, align, name, bytes, init, is_extern: linkage.is_extern })
    }

    fn init(&mut self, out: &mut Vec<Init<'a>>, depth: u32) -> Result<()> {
        if depth > 8 {
            return Err(self.error("initialiser nested too deep"));
        }
        if self.accept(b'{') {
            while !self.accept(b'}') {
                self.init(out, depth + 1)?;
                if !self.accept(b',') {
                    self.expect(b'}')?;
                    break;
                }
            }
            return Ok(());
        }
        match self.peek() {
            Tok::F32(bits) => {
                self.next();
                out.push(Init::F32(bits));
            }
            Tok::F64(bits) => {
                self.next();
                out.push(Init::F64(bits));
            }
            Tok::Ident("generic") => {
                self.next();
                self.expect(b'(')?;
                let name = self.ident()?;
                self.expect(b')')?;
                let offset = if self.accept(b'+') { self.int()? } else { 0 };
                out.push(Init::Address(name, offset));
            }
            Tok::Ident(name) => {
                self.next();
                let offset = if self.accept(b'+') { self.int()? } else { 0 };
                out.push(Init::Address(name, offset));
            }
            _ => out.push(Init::Int(self.int()?)),
        }
        Ok(())
    }

    fn params(&mut self) -> Result<Vec<Var<'a>>> {
        let mut out = Vec::new();
        self.expect(b'(')?;
        if self.accept(b')') {
            return Ok(out);
        }
        loop {
            if self.accept_dot("reg") {
                return Err(self.error("register parameters are not supported before"));
            }
            let (space, ty, align) = self.var_head()?;
            out.push(self.var_tail(space, ty, align, Linkage::default())?);
            if !self.accept(b',') {
                break;
            }
        }
        self.expect(b')')?;
        Ok(out)
    }

    fn func(&mut self) -> Result<Func<'a>> {
        let line = self.line();
        let is_entry = self.next() == Tok::Dot("entry");
        let rets = if !is_entry && self.is(b'(') { self.params()? } else { Vec::new() };
        let name = self.ident()?;
        let params = if self.is(b'(') { self.params()? } else { Vec::new() };
        let mut func = Func {
            line,
            name,
            is_entry,
            params,
            rets,
            body: None,
            max_threads: None,
            exact_threads: false,
            min_blocks: 0,
            max_registers: 0,
        };
        loop {
            match self.peek() {
                Tok::Dot(directive @ ("maxntid" | "reqntid")) => {
                    self.next();
                    let mut dims = [1; 3];
                    for (i, dim) in dims.iter_mut().enumerate() {
                        if i == 0 || self.accept(b',') {
                            *dim = self.unsigned()?;
                        }
                    }
                    func.max_threads = Some(dims);
                    func.exact_threads = directive == "reqntid";
                }
                Tok::Dot("minnctapersm") => {
                    self.next();
                    func.min_blocks = self.unsigned()?;
                }
                Tok::Dot("maxnreg") => {
                    self.next();
                    func.max_registers = self.unsigned()?;
                }
                Tok::Dot("noreturn") => {
                    self.next();
                }
                Tok::Dot("pragma") => {
                    self.next();
                    while !self.accept(b';') {
                        if self.next() == Tok::End {
                            return Err(self.error("unterminated .pragma"));
                        }
                    }
                }
                Tok::Punct(b';') => {
                    self.next();
                    return Ok(func);
                }
                Tok::Punct(b'{') => {
                    self.next();
                    func.body = Some(self.body(0)?);
                    return Ok(func);
                }
                _ => return Err(self.error("expected a function body")),
            }
        }
    }
}
