package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

type descriptor struct {
	Digest      string            `json:"digest"`
	Annotations map[string]string `json:"annotations"`
}

// Load unpacks an OCI archive into dir and records the image under its name. Loading it again replaces it for pods that start from then on;
// those that run keep the files they started from.
func Load(dir, archive string) (*Image, error) {
	blobs, err := readArchive(archive)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", archive, err)
	}
	image, layers, err := describe(blobs)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", archive, err)
	}
	image.Rootfs = filepath.Join(dir, strings.TrimPrefix(image.Digest, "sha256:"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if _, err := os.Stat(image.Rootfs); errors.Is(err, fs.ErrNotExist) {
		partial := image.Rootfs + ".partial"
		if err := os.RemoveAll(partial); err != nil {
			return nil, err
		}
		for _, layer := range layers {
			if err := unpack(partial, layer); err != nil {
				return nil, fmt.Errorf("%s: %w", archive, err)
			}
		}
		if err := os.Rename(partial, image.Rootfs); err != nil {
			return nil, err
		}
	}
	record, err := json.MarshalIndent(image, "", "  ")
	if err != nil {
		return nil, err
	}
	path := recordPath(dir, image.Name)
	if err := os.WriteFile(path+".partial", record, 0o644); err != nil {
		return nil, err
	}
	return image, os.Rename(path+".partial", path)
}

func readArchive(path string) (map[string][]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	files := map[string][]byte{}
	reader := tar.NewReader(file)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		if header.Typeflag == tar.TypeReg {
			if files[filepath.Clean(header.Name)], err = io.ReadAll(reader); err != nil {
				return nil, err
			}
		}
	}
}

// describe follows index, manifest and configuration to the layers.
func describe(files map[string][]byte) (*Image, [][]byte, error) {
	read := func(name string, into any) error {
		data, there := files[name]
		if !there {
			return fmt.Errorf("%s is missing; want an OCI layout", name)
		}
		return json.Unmarshal(data, into)
	}
	blob := func(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }
	var index struct{ Manifests []descriptor }
	if err := read("index.json", &index); err != nil {
		return nil, nil, err
	}
	if len(index.Manifests) != 1 {
		return nil, nil, fmt.Errorf("index.json names %d images; want one", len(index.Manifests))
	}
	head := index.Manifests[0]
	image := &Image{Name: head.Annotations["io.containerd.image.name"], Digest: head.Digest}
	if image.Name == "" {
		return nil, nil, errors.New("index.json has no annotation io.containerd.image.name")
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	if err := read(blob(head.Digest), &manifest); err != nil {
		return nil, nil, err
	}
	var config struct{ Config Image }
	if err := read(blob(manifest.Config.Digest), &config); err != nil {
		return nil, nil, err
	}
	image.Entrypoint, image.Cmd = config.Config.Entrypoint, config.Config.Cmd
	image.Env, image.WorkingDir = config.Config.Env, config.Config.WorkingDir
	var layers [][]byte
	for _, layer := range manifest.Layers {
		data, there := files[blob(layer.Digest)]
		if !there {
			return nil, nil, fmt.Errorf("layer %s is missing", layer.Digest)
		}
		layers = append(layers, data)
	}
	return image, layers, nil
}

// unpack writes a layer. os.Root keeps every name inside the folder, whatever links the layer has.
func unpack(dir string, layer []byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	var stream io.Reader = bytes.NewReader(layer)
	if bytes.HasPrefix(layer, []byte{0x1f, 0x8b}) {
		if stream, err = gzip.NewReader(stream); err != nil {
			return err
		}
	}
	reader := tar.NewReader(stream)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := unpackEntry(root, header, reader); err != nil {
			return fmt.Errorf("layer entry %s: %w", header.Name, err)
		}
	}
}

func unpackEntry(root *os.Root, header *tar.Header, content io.Reader) error {
	name := strings.TrimPrefix(filepath.Clean("/"+header.Name), "/")
	if name == "" {
		return nil
	}
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	base := filepath.Base(name)
	if removed, isWhiteout := strings.CutPrefix(base, ".wh."); isWhiteout {
		if removed == ".wh..opq" {
			return nil // an opaque folder hides lower layers only where we keep them apart, and we don't
		}
		return root.RemoveAll(filepath.Join(filepath.Dir(name), removed))
	}
	switch header.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o755)
	case tar.TypeSymlink:
		_ = root.Remove(name)
		return root.Symlink(header.Linkname, name)
	case tar.TypeLink:
		_ = root.Remove(name)
		return root.Link(strings.TrimPrefix(filepath.Clean("/"+header.Linkname), "/"), name)
	case tar.TypeReg:
		_ = root.Remove(name)
		file, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY, os.FileMode(header.Mode).Perm()|0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(file, content)
		return errors.Join(err, file.Close())
	}
	return nil // devices and the like have no meaning here
}
