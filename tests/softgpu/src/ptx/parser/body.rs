//! Function bodies: statements, instructions, operands.

use super::{Linkage, Parser, Result};
use crate::ptx::ast::*;
use crate::ptx::lexer::Tok;

/// Nested scopes deeper than this are refused, so that hostile text cannot exhaust the stack.
const MAX_DEPTH: u32 = 64;

impl<'a> Parser<'a> {
    /// Statements up to and including the closing brace.
    pub(super) fn body(&mut self, depth: u32) -> Result<Vec<Stmt<'a>>> {
        if depth > MAX_DEPTH {
            return Err(self.error("scopes nested too deep"));
        }
        let mut out = Vec::new();
        loop {
            match self.peek() {
                Tok::End => return Err(self.error("expected `}`")),
                Tok::Punct(b'}') => {
                    self.next();
                    return Ok(out);
                }
                Tok::Punct(b';') => {
                    self.next();
                }
                Tok::Punct(b'{') => {
                    self.next();
                    out.push(Stmt::Scope(self.body(depth + 1)?));
                }
                Tok::Dot("reg") => {
                    self.next();
                    self.reg(&mut out)?;
                }
                Tok::Dot("local" | "shared" | "param" | "const" | "global") => {
                    let mut vars = Vec::new();
                    self.vars(Linkage::default(), &mut vars)?;
                    out.extend(vars.into_iter().map(Stmt::Var));
                }
                Tok::Dot("extern") => {
                    let linkage = self.linkage();
                    let mut vars = Vec::new();
                    self.vars(linkage, &mut vars)?;
                    out.extend(vars.into_iter().map(Stmt::Var));
                }
                Tok::Dot("loc") => {
                    self.next();
                    let file = self.unsigned()?;
                    let line = self.unsigned()?;
                    self.unsigned()?;
                    while self.accept(b',') {
                        self.loc_attribute()?;
                    }
                    out.push(Stmt::Loc { file, line });
                }
                Tok::Dot("pragma") => {
                    while !self.accept(b';') {
                        if self.next() == Tok::End {
                            return Err(self.error("unterminated .pragma"));
                        }
                    }
                }
                Tok::Ident(name) if self.peek_at(1) == Tok::Punct(b':') => {
                    self.next();
                    self.next();
                    if self.accept_dot("branchtargets") {
                        let mut targets = vec![self.ident()?];
                        while self.accept(b',') {
                            targets.push(self.ident()?);
                        }
                        self.expect(b';')?;
                        out.push(Stmt::BranchTargets(name, targets));
                    } else {
                        out.push(Stmt::Label(name));
                    }
                }
                Tok::Punct(b'@') | Tok::Ident(_) => out.push(Stmt::Instr(self.instr()?)),
                _ => return Err(self.error("expected a statement")),
            }
        }
    }

    fn loc_attribute(&mut self) -> Result<()> {
        match self.ident()? {
            "function_name" => {
                self.ident()?;
                if self.accept(b'+') {
                    self.int()?;
                }
            }
            "inlined_at" => {
                for _ in 0..3 {
                    self.unsigned()?;
                }
            }
            _ => return Err(self.error("unknown .loc attribute before")),
        }
        Ok(())
    }

    fn reg(&mut self, out: &mut Vec<Stmt<'a>>) -> Result<()> {
        let ty = match self.next() {
            Tok::Dot(name) => Type::from_name(name),
            _ => None,
        }
        .ok_or_else(|| self.error("unknown register type before"))?;
        loop {
            let name = self.ident()?;
            let count = if self.accept(b'<') {
                let n = self.unsigned()?;
                self.expect(b'>')?;
                if n > 1 << 20 {
                    return Err(self.error("too many registers before"));
                }
                Some(n)
            } else {
                None
            };
            out.push(Stmt::Reg { ty, name, count });
            if !self.accept(b',') {
                break;
            }
        }
        self.expect(b';')
    }

    fn instr(&mut self) -> Result<Instr<'a>> {
        let guard = if self.accept(b'@') {
            let negated = self.accept(b'!');
            Some((negated, self.ident()?))
        } else {
            None
        };
        let line = self.line();
        let start = self.tokens[self.at].start;
        self.ident()?;
        let mut end = self.tokens[self.at - 1].end;
        while let Tok::Dot(_) = self.peek() {
            end = self.tokens[self.at].end;
            self.next();
        }
        let opcode = &self.src[start..end];
        let mut operands = Vec::new();
        if !self.is(b';') {
            loop {
                operands.push(self.operand(0)?);
                if !self.accept(b',') {
                    break;
                }
            }
        }
        let end = self.tokens[self.at].start;
        self.expect(b';')?;
        Ok(Instr { line, guard, opcode, operands, text: self.src[start..end].trim_end() })
    }

    fn operand(&mut self, depth: u32) -> Result<Operand<'a>> {
        if depth > 3 {
            return Err(self.error("operand nested too deep"));
        }
        let first = match self.peek() {
            Tok::Punct(b'{') => {
                self.next();
                return Ok(Operand::Vector(self.operands_until(b'}', depth)?));
            }
            Tok::Punct(b'(') => {
                self.next();
                return Ok(Operand::List(self.operands_until(b')', depth)?));
            }
            Tok::Punct(b'[') => {
                self.next();
                return self.address(depth);
            }
            Tok::Punct(b'!') => {
                self.next();
                return Ok(Operand::Not(self.ident()?));
            }
            Tok::Punct(b'-') | Tok::Int(_) => return Ok(Operand::Int(self.int()?)),
            Tok::F32(bits) => {
                self.next();
                return Ok(Operand::F32(bits));
            }
            Tok::F64(bits) => {
                self.next();
                return Ok(Operand::F64(bits));
            }
            Tok::Ident("_") => {
                self.next();
                Operand::Sink
            }
            Tok::Ident(_) => Operand::Name(self.dotted_name()?),
            _ => return Err(self.error("expected an operand")),
        };
        if self.accept(b'|') {
            let second = self.operand(depth + 1)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        if let Operand::Name(name) = first
            && self.is(b'+')
        {
            self.next();
            return Ok(Operand::Address(name, self.int()?));
        }
        Ok(first)
    }

    /// A name with an adjacent `.x` suffix, as special registers have.
    fn dotted_name(&mut self) -> Result<&'a str> {
        let start = self.tokens[self.at].start;
        self.ident()?;
        let mut end = self.tokens[self.at - 1].end;
        if let Tok::Dot(_) = self.peek()
            && self.tokens[self.at].start == end
        {
            end = self.tokens[self.at].end;
            self.next();
        }
        Ok(&self.src[start..end])
    }

    fn operands_until(&mut self, close: u8, depth: u32) -> Result<Vec<Operand<'a>>> {
        let mut out = Vec::new();
        if self.accept(close) {
            return Ok(out);
        }
        loop {
            out.push(self.operand(depth + 1)?);
            if !self.accept(b',') {
                break;
            }
        }
        self.expect(close)?;
        Ok(out)
    }

    fn address(&mut self, depth: u32) -> Result<Operand<'a>> {
        let base = match self.peek() {
            Tok::Ident(_) => self.dotted_name()?,
            _ => "",
        };
        if !base.is_empty() && self.accept(b',') {
            let mut list = vec![Operand::Name(base)];
            list.extend(self.operands_until(b']', depth)?);
            return Ok(Operand::Tensor(list));
        }
        let mut offset = 0i64;
        if base.is_empty() {
            offset = self.int()?;
        }
        loop {
            // A minus sign belongs to the integer.
            if self.accept(b'+') || self.is(b'-') {
                offset = offset.wrapping_add(self.int()?);
            } else {
                break;
            }
        }
        self.expect(b']')?;
        Ok(Operand::Address(base, offset))
    }
}
