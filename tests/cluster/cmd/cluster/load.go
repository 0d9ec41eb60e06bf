package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"collect.dev/tests/cluster/image"
)

// runLoadImage makes an image known to the cluster's node.
func runLoadImage(args []string) error {
	flags, name := flagsWithName("load-image")
	files, err := parse(flags, args)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return errors.New("load-image: want FILE.tar, an OCI archive; deploy/images makes them")
	}
	c, err := openKnown(*name)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := c.loadImage(file); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) loadImage(file string) error {
	switch c.Node {
	case nodeReal:
		absolute, err := filepath.Abs(file)
		if err != nil {
			return err
		}
		return c.ctr("images", "import", absolute)
	case nodeProcess:
		loaded, err := image.Load(c.path("images"), file)
		if err != nil {
			return err
		}
		fmt.Println(loaded.Name, loaded.Digest)
	}
	return nil // a scripted node has every image, and without a node there is nothing to run one
}
