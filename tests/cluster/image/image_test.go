package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestNamesAreCompletedAsRuntimesDo(t *testing.T) {
	for name, want := range map[string]string{
		"x":                       "docker.io/library/x:latest",
		"local/x:dev":             "docker.io/local/x:dev",
		"docker.io/local/x:dev":   "docker.io/local/x:dev",
		"localhost/x":             "localhost/x:latest",
		"reg.example:5000/x":      "reg.example:5000/x:latest",
		"example.org/x@sha256:ab": "example.org/x@sha256:ab",
	} {
		if got := Normalise(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

type entry struct {
	header tar.Header
	data   string
}

func tarOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	writer := tar.NewWriter(&out)
	for _, entry := range entries {
		entry.header.Size = int64(len(entry.data))
		if err := writer.WriteHeader(&entry.header); err != nil {
			t.Fatal(err)
		}
		if _, err := writer.Write([]byte(entry.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// archive writes an OCI archive with one layer.
func archive(t *testing.T, layer []byte) string {
	t.Helper()
	file := func(name string, value any) entry {
		data, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		return entry{tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg}, string(data)}
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	data := tarOf(t,
		file("index.json", map[string]any{"manifests": []any{map[string]any{"digest": "sha256:m", "annotations": map[string]string{"io.containerd.image.name": "docker.io/local/x:dev"}}}}),
		file("blobs/sha256/m", map[string]any{"config": map[string]any{"digest": "sha256:c"}, "layers": []any{map[string]any{"digest": "sha256:l"}}}),
		file("blobs/sha256/c", map[string]any{"config": map[string]any{"Entrypoint": []string{"/bin/x"}, "Env": []string{"A=b"}, "WorkingDir": "/w"}}),
		entry{tar.Header{Name: "blobs/sha256/l", Mode: 0o644, Typeflag: tar.TypeReg}, string(layer)},
	)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestALoadedImageIsFoundAndItsProgramsTooEvenThroughLinks(t *testing.T) {
	layer := tarOf(t,
		entry{tar.Header{Name: "bin/x", Mode: 0o755, Typeflag: tar.TypeReg}, "program"},
		entry{tar.Header{Name: "usr", Linkname: "/bin", Typeflag: tar.TypeSymlink}, ""},
		entry{tar.Header{Name: "bin/y", Linkname: "x", Typeflag: tar.TypeSymlink}, ""},
	)
	dir := t.TempDir()
	if _, err := Find(dir, "local/x:dev"); !errors.Is(err, ErrUnknown) {
		t.Errorf("before it is loaded: %v", err)
	}
	for range 2 {
		if _, err := Load(dir, archive(t, layer)); err != nil {
			t.Fatal(err)
		}
	}
	image, err := Find(dir, "local/x:dev")
	if err != nil {
		t.Fatal(err)
	}
	if image.Entrypoint[0] != "/bin/x" || image.Env[0] != "A=b" || image.WorkingDir != "/w" {
		t.Errorf("got %+v", image)
	}
	want := filepath.Join(image.Rootfs, "bin/x")
	for _, argv0 := range []string{"/bin/x", "x", "/bin/y"} {
		if got := image.Program(argv0, "/sbin:/bin"); got != want {
			t.Errorf("%s: got %s, want %s", argv0, got, want)
		}
	}
	if got := image.Program("/bin/sh", "/bin"); got != "/bin/sh" {
		t.Errorf("a program the image lacks: %s", got)
	}
}

func TestALayerCanNotWriteOutsideItsFolder(t *testing.T) {
	outside := t.TempDir()
	layer := tarOf(t,
		entry{tar.Header{Name: "out", Linkname: outside, Typeflag: tar.TypeSymlink}, ""},
		entry{tar.Header{Name: "out/file", Mode: 0o644, Typeflag: tar.TypeReg}, "x"},
	)
	if _, err := Load(t.TempDir(), archive(t, layer)); err == nil {
		t.Error("a layer that leaves its folder was accepted")
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("written outside: %v %v", left, err)
	}
}
