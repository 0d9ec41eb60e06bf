package main

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// program is a static ELF file and what it says of its making.
type program struct {
	name, sha256, arch string
	rust               string // of the standard library
	glibc, gcc         built
}

// built is a version, and that of the package it comes from if a distribution built it.
type built struct{ version, vendor, pkg string }

// What the compilers and the C library leave in every static program.
var (
	rustc = regexp.MustCompile(`rustc version (\S+) \(`)
	glibc = regexp.MustCompile(`GNU C Library \((?:(\S+) GLIBC (\S+)|[^)]*)\) \w+ release version (\d[\d.]*\d)\.`)
	gcc   = regexp.MustCompile(`GCC: \((?:(\S+) (\S+)|[^)]*)\) (\d[\d.]*\d)`)
)

func readProgram(path string) (*program, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	file, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if libraries, err := file.ImportedLibraries(); err != nil || len(libraries) > 0 {
		return nil, fmt.Errorf("%s is not static: it needs %s (%v)", path, strings.Join(libraries, ", "), err)
	}
	arch := map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64"}[file.Machine]
	rust, c, compiler := rustc.FindSubmatch(data), glibc.FindSubmatch(data), gcc.FindSubmatch(data)
	if arch == "" || rust == nil || c == nil || compiler == nil {
		return nil, fmt.Errorf("%s does not tell which compiler, C library and processor it was made with", path)
	}
	sum := sha256.Sum256(data)
	found := func(match [][]byte) built { return built{string(match[3]), string(match[1]), string(match[2])} }
	return &program{filepath.Base(path), hex.EncodeToString(sum[:]), arch, string(rust[1]), found(c), found(compiler)}, nil
}
