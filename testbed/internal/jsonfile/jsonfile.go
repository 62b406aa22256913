// Package jsonfile reads and writes the files by which the test bed's processes hand values to each other.
package jsonfile

import (
	"encoding/json"
	"fmt"
	"os"
)

// Read gives the value in a file. The error of a file that is not there is os.ErrNotExist.
func Read[T any](path string) (T, error) {
	var value T
	data, err := os.ReadFile(path)
	if err != nil {
		return value, fmt.Errorf("reading what the test bed noted: %w", err)
	}
	if err := json.Unmarshal(data, &value); err != nil {
		return value, fmt.Errorf("reading what the test bed noted in %s: %w", path, err)
	}
	return value, nil
}

// Write puts a value into a file, for root alone to read, as Replace does.
func Write(path string, value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return Replace(path, data)
}

// Replace writes a file beside and renames it: whoever waits for the file finds it whole.
func Replace(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
