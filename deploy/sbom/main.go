// Command sbom tells in CycloneDX what a static program is made of, or an image that holds it alone: the crates that cargo links for the
// target, their checksums from Cargo.lock, and what came with the compilers, by what they left in the program itself.
//
// The same program and commit always give the same bytes: there is no serial number, and the time is the caller's.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("sbom", flag.ContinueOnError)
	crates := flags.String("crates", "", "file with what `deploy/programs.sh crates` prints")
	lock := flags.String("lock", "Cargo.lock", "lock file that was built with")
	root := flags.String("package", "", "package that the program is of")
	path := flags.String("program", "", "the program's file")
	image := flags.String("image", "", "image that holds the program: NAME:TAG@sha256:…")
	seconds := flags.Int64("time", 0, "time of the commit, in seconds since 1970")
	out := flags.String("out", "", "file to write")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *crates == "" || *root == "" || *path == "" || *out == "" {
		return fmt.Errorf("--crates, --package, --program and --out are required")
	}
	tree, err := readTree(*crates)
	if err != nil {
		return err
	}
	linked, err := tree.below(*root)
	if err != nil {
		return err
	}
	checksums, err := readLock(*lock)
	if err != nil {
		return err
	}
	program, err := readProgram(*path)
	if err != nil {
		return err
	}
	bill, err := describe(program, linked, checksums)
	if err != nil {
		return err
	}
	if *image != "" {
		if err := bill.putInto(*image, program.arch); err != nil {
			return err
		}
	}
	return write(*out, bill.bom(time.Unix(*seconds, 0)))
}

func write(path string, bom *cdx.BOM) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	encoder := cdx.NewBOMEncoder(file, cdx.BOMFileFormatJSON).SetPretty(true)
	if err := encoder.EncodeVersion(bom, cdx.SpecVersion1_6); err != nil {
		return err
	}
	return file.Close()
}
