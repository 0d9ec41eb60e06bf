package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"testing"
)

func sample() Image {
	return Image{
		Name: "docker.io/local/x:dev", Arch: "amd64", Entrypoint: []string{"/bin/x"}, User: "65532:65532",
		Files: []File{{Path: "/bin/x", Mode: 0o755, Data: []byte("program")}, {Path: "/etc/a", Mode: 0o644, Data: []byte("a")}},
	}
}

func TestTheSameInputGivesTheSameBytes(t *testing.T) {
	image := sample()
	first, digest, err := image.Archive()
	if err != nil {
		t.Fatal(err)
	}
	image.Files[0], image.Files[1] = image.Files[1], image.Files[0]
	second, again, err := image.Archive()
	if err != nil {
		t.Fatal(err)
	}
	if digest != again || !bytes.Equal(first, second) {
		t.Errorf("two archives of one image differ: %s %s", digest, again)
	}
}

func TestEveryBlobIsNamedByItsDigestAndReachableFromTheIndex(t *testing.T) {
	archive, digest, err := sample().Archive()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	reader := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = data
	}
	blob := func(digest string) []byte {
		data, there := files["blobs/sha256/"+digest[len("sha256:"):]]
		if !there || digestOf(data) != digest {
			t.Fatalf("blob %s is missing or has other content", digest)
		}
		return data
	}
	var index struct{ Manifests []descriptor }
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	if got := index.Manifests[0]; got.Digest != digest || got.Annotations["io.containerd.image.name"] != "docker.io/local/x:dev" {
		t.Errorf("index names %+v", got)
	}
	if err := json.Unmarshal(blob(digest), &manifest); err != nil {
		t.Fatal(err)
	}
	blob(manifest.Config.Digest)
	blob(manifest.Layers[0].Digest)
}

func TestAFileNeedsAnAbsoluteTarget(t *testing.T) {
	for _, spec := range []string{"x", "x=relative", "=/missing-source"} {
		if _, err := readFile(spec); err == nil {
			t.Errorf("%q was accepted", spec)
		}
	}
}
