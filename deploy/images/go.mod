module collect.dev/images

go 1.24
