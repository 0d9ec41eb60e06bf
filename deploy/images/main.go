// Command images writes an OCI image archive from static binaries: one layer, no base image, no container engine.
//
// The same input always gives the same bytes (sorted entries, fixed times, no host names), so a digest can be published and
// checked. It uses the standard library only and is one file, so that `go run deploy/images/main.go` works from the top
// of the repository.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"sort"
	"strings"
	"time"
)

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// epoch is the time of everything in an image.
var epoch = time.Unix(0, 0).UTC()

// Image is what goes into an archive.
type Image struct {
	Name       string // full name with registry and tag: docker.io/local/worker:dev
	Arch       string // Go's name: amd64, arm64
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string // uid:gid
	WorkingDir string
	Labels     map[string]string
	Files      []File
}

// File is one file of the layer; its folders are created as needed.
type File struct {
	Path string // absolute path in the image
	Mode int64
	Data []byte
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

func run(args []string, stdout io.Writer) error {
	var image Image
	var entrypoint, cmd, env, labels, files list
	var out string
	flags := flag.NewFlagSet("images", flag.ContinueOnError)
	flags.StringVar(&image.Name, "name", "", "full image name, such as docker.io/local/worker:dev")
	flags.StringVar(&image.Arch, "arch", runtime.GOARCH, "architecture of the binaries, in Go's names")
	flags.StringVar(&image.User, "user", "65532:65532", "uid:gid the container runs as")
	flags.StringVar(&image.WorkingDir, "workdir", "/", "working directory")
	flags.StringVar(&out, "out", "", "archive to write")
	flags.Var(&entrypoint, "entrypoint", "entrypoint; repeat for its arguments")
	flags.Var(&cmd, "cmd", "default argument; may be repeated")
	flags.Var(&env, "env", "KEY=VALUE; may be repeated")
	flags.Var(&labels, "label", "KEY=VALUE; may be repeated")
	flags.Var(&files, "file", "SOURCE=/path/in/image; may be repeated; executables stay executable")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if image.Name == "" || out == "" || len(files) == 0 {
		return fmt.Errorf("--name, --out and at least one --file are required")
	}
	image.Entrypoint, image.Cmd, image.Env = entrypoint, cmd, env
	for _, label := range labels {
		key, value, _ := strings.Cut(label, "=")
		if image.Labels == nil {
			image.Labels = map[string]string{}
		}
		image.Labels[key] = value
	}
	for _, spec := range files {
		file, err := readFile(spec)
		if err != nil {
			return err
		}
		image.Files = append(image.Files, file)
	}
	archive, digest, err := image.Archive()
	if err != nil {
		return err
	}
	if err := os.WriteFile(out, archive, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s %s %d\n", image.Name, digest, len(archive))
	return nil
}

// readFile reads SOURCE=/target.
func readFile(spec string) (File, error) {
	source, target, found := strings.Cut(spec, "=")
	if !found || !path.IsAbs(target) {
		return File{}, fmt.Errorf("--file %s: want SOURCE=/path/in/image", spec)
	}
	data, err := os.ReadFile(source)
	if err != nil {
		return File{}, err
	}
	info, err := os.Stat(source)
	if err != nil {
		return File{}, err
	}
	mode := int64(0o644)
	if info.Mode()&0o111 != 0 {
		mode = 0o755
	}
	return File{Path: path.Clean(target), Mode: mode, Data: data}, nil
}

// Archive gives the OCI layout as a tar, and the digest of the manifest.
func (i Image) Archive() ([]byte, string, error) {
	layer, err := i.layer()
	if err != nil {
		return nil, "", err
	}
	packed, err := pack(layer)
	if err != nil {
		return nil, "", err
	}
	var archive layout
	config := archive.addJSON(typeConfig, i.config(digestOf(layer)))
	manifest := archive.addJSON(typeManifest, map[string]any{
		"schemaVersion": 2,
		"mediaType":     typeManifest,
		"config":        config,
		"layers":        []descriptor{archive.add(typeLayer, packed)},
	})
	manifest.Platform = &platform{Architecture: i.Arch, OS: "linux"}
	manifest.Annotations = map[string]string{
		"io.containerd.image.name":          i.Name,
		"org.opencontainers.image.ref.name": i.Name[strings.LastIndex(i.Name, ":")+1:],
	}
	archive.put("index.json", toJSON(map[string]any{
		"schemaVersion": 2,
		"mediaType":     typeIndex,
		"manifests":     []descriptor{manifest},
	}))
	archive.put("oci-layout", toJSON(map[string]string{"imageLayoutVersion": "1.0.0"}))
	bytes, err := archive.tar()
	return bytes, manifest.Digest, err
}

func (i Image) config(layerDigest string) any {
	return map[string]any{
		"created":      epoch.Format(time.RFC3339),
		"architecture": i.Arch,
		"os":           "linux",
		"config": map[string]any{
			"User":       i.User,
			"Env":        append([]string{"PATH=/usr/local/bin:/usr/bin:/bin:/"}, i.Env...),
			"Entrypoint": i.Entrypoint,
			"Cmd":        i.Cmd,
			"WorkingDir": i.WorkingDir,
			"Labels":     i.Labels,
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{layerDigest}},
		"history": []any{map[string]any{"created": epoch.Format(time.RFC3339), "created_by": "deploy/images"}},
	}
}

// layer gives the files and their folders as a tar, sorted by name, plus a /tmp for everybody.
func (i Image) layer() ([]byte, error) {
	entries := map[string]tar.Header{"tmp/": {Typeflag: tar.TypeDir, Mode: 0o1777}}
	data := map[string][]byte{}
	for _, file := range i.Files {
		name := strings.TrimPrefix(file.Path, "/")
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, there := entries[dir+"/"]; !there {
				entries[dir+"/"] = tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}
			}
		}
		entries[name] = tar.Header{Typeflag: tar.TypeReg, Mode: file.Mode, Size: int64(len(file.Data))}
		data[name] = file.Data
	}
	return writeTar(entries, data)
}

// layout collects the files of an OCI layout.
type layout struct{ files map[string][]byte }

func (l *layout) put(name string, data []byte) {
	if l.files == nil {
		l.files = map[string][]byte{}
	}
	l.files[name] = data
}

func (l *layout) add(mediaType string, data []byte) descriptor {
	digest := digestOf(data)
	l.put("blobs/sha256/"+strings.TrimPrefix(digest, "sha256:"), data)
	return descriptor{MediaType: mediaType, Digest: digest, Size: len(data)}
}

func (l *layout) addJSON(mediaType string, value any) descriptor {
	return l.add(mediaType, toJSON(value))
}

func (l *layout) tar() ([]byte, error) {
	entries := map[string]tar.Header{
		"blobs/":        {Typeflag: tar.TypeDir, Mode: 0o755},
		"blobs/sha256/": {Typeflag: tar.TypeDir, Mode: 0o755},
	}
	for name, data := range l.files {
		entries[name] = tar.Header{Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))}
	}
	return writeTar(entries, l.files)
}

func writeTar(entries map[string]tar.Header, data map[string][]byte) ([]byte, error) {
	names := make([]string, 0, len(entries))
	for name := range entries {
		names = append(names, name)
	}
	sort.Strings(names)
	var out bytes.Buffer
	writer := tar.NewWriter(&out)
	for _, name := range names {
		header := entries[name]
		header.Name, header.ModTime, header.Format = name, epoch, tar.FormatUSTAR
		if err := writer.WriteHeader(&header); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if _, err := writer.Write(data[name]); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	err := writer.Close()
	return out.Bytes(), err
}

// pack compresses; gzip's header carries neither name nor time.
func pack(data []byte) ([]byte, error) {
	var out bytes.Buffer
	writer, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := writer.Write(data); err != nil {
		return nil, err
	}
	err = writer.Close()
	return out.Bytes(), err
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func toJSON(value any) []byte {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err) // plain maps and strings always marshal
	}
	return data
}
