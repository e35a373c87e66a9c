// Writes the prompts of LocalAI's chats with Go's own text/template and sprig: the referee of tests/chat/cases/localai.json.
//
// What is done, and in which order, is what LocalAI's core/templates/evaluator.go (commit 82c191a) does; the structs have its
// fields, types and JSON tags. One case a line on stdin, {"model": {...}, "request": {...}}; one answer a line on stdout.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig/v3"
)

type FunctionCall struct {
	Name      string `json:"name,omitempty"`
	Arguments string `json:"arguments"`
}

type ToolCall struct {
	Index        int          `json:"index"`
	ID           string       `json:"id"`
	Type         string       `json:"type"`
	FunctionCall FunctionCall `json:"function"`
}

type Function struct {
	Name        string                 `json:"name"`
	Description string                 `json:"description"`
	Strict      bool                   `json:"strict"`
	Parameters  map[string]interface{} `json:"parameters"`
}

type PromptTemplateData struct {
	SystemPrompt         string
	SuppressSystemPrompt bool
	Input                string
	Instruction          string
	Functions            []Function
	MessageIndex         int
	ReasoningEffort      string
	Metadata             map[string]string
}

type ChatMessageTemplateData struct {
	SystemPrompt string
	Role         string
	RoleName     string
	FunctionName string
	Content      string
	MessageIndex int
	Function     bool
	FunctionCall interface{}
	LastMessage  bool
}

type Case struct {
	Model struct {
		Template struct {
			Chat        string  `json:"chat"`
			ChatMessage string  `json:"chat_message"`
			Function    string  `json:"function"`
			Join        *string `json:"join_chat_messages_by_character"`
		} `json:"template"`
		Roles        map[string]string `json:"roles"`
		SystemPrompt string            `json:"system_prompt"`
		Function     struct {
			DisableNoAction bool   `json:"disable_no_action"`
			NoActionName    string `json:"no_action_function_name"`
			Grammar         struct {
				Disable bool `json:"disable"`
			} `json:"grammar"`
		} `json:"function"`
	} `json:"model"`
	Request struct {
		Messages []struct {
			Role         string      `json:"role"`
			Name         string      `json:"name"`
			Content      interface{} `json:"content"`
			FunctionCall interface{} `json:"function_call"`
			ToolCalls    []ToolCall  `json:"tool_calls"`
		} `json:"messages"`
		Tools []struct {
			Function Function `json:"function"`
		} `json:"tools"`
		ToolChoice      interface{}       `json:"tool_choice"`
		ReasoningEffort string            `json:"reasoning_effort"`
		Metadata        map[string]string `json:"metadata"`
	} `json:"request"`
}

func main() {
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<24)
	for in.Scan() {
		var c Case
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			panic(err)
		}
		out.Encode(map[string]interface{}{"go": runtime.Version(), "prompt": chat(c)})
	}
}

func render(text string, data interface{}) (string, error) {
	parsed, err := template.New("prompt").Funcs(sprig.FuncMap()).Parse(text)
	if err != nil {
		return "", err
	}
	var written strings.Builder
	err = parsed.Execute(&written, data)
	return written.String(), err
}

func textOf(content interface{}) string {
	if text, is := content.(string); is {
		return text
	}
	joined := ""
	parts, _ := content.([]interface{})
	for _, part := range parts {
		if text, is := part.(map[string]interface{})["text"].(string); is {
			joined += text
		}
	}
	return joined
}

// The functions that are told, whether they are in use, and whether a grammar will be.
func functionsOf(c Case) ([]Function, bool, bool) {
	var told []Function
	strict := false
	for _, tool := range c.Request.Tools {
		told = append(told, tool.Function)
		strict = strict || tool.Function.Strict
	}
	forced := ""
	if choice, is := c.Request.ToolChoice.(map[string]interface{}); is {
		forced = choice["function"].(map[string]interface{})["name"].(string)
	}
	uses := len(told) > 0 && (c.Request.ToolChoice != "none" || forced != "")
	grammar := uses && (strict || !c.Model.Function.Grammar.Disable)
	if grammar && !c.Model.Function.DisableNoAction && !strict {
		name := c.Model.Function.NoActionName
		if name == "" {
			name = "answer"
		}
		message := map[string]interface{}{"type": "string", "description": "The message to reply the user with"}
		told = append(told, Function{
			Name:        name,
			Description: "use this action to answer without performing any action",
			Parameters:  map[string]interface{}{"properties": map[string]interface{}{"message": message}},
		})
	}
	if forced != "" {
		var only []Function
		for _, each := range told {
			if each.Name == forced {
				only = []Function{each}
				break
			}
		}
		told = only
	}
	return told, uses, grammar
}

func chat(c Case) string {
	functions, uses, grammar := functionsOf(c)
	suppress := false
	pieces := []string{}
	for index, message := range c.Request.Messages {
		called := message.FunctionCall != nil || message.ToolCalls != nil
		role := message.Role
		if called && role == "assistant" && c.Model.Roles["assistant_function_call"] != "" {
			role = "assistant_function_call"
		}
		renamed := c.Model.Roles[role]
		text := textOf(message.Content)
		piece := ""
		if c.Model.Template.ChatMessage != "" {
			last := index == len(c.Request.Messages)-1
			call := message.FunctionCall
			if len(message.ToolCalls) > 0 {
				call = message.ToolCalls
			}
			written, err := render(c.Model.Template.ChatMessage, ChatMessageTemplateData{
				SystemPrompt: c.Model.SystemPrompt, Role: renamed, RoleName: role, FunctionName: message.Name, Content: text,
				MessageIndex: index, Function: grammar && last, FunctionCall: call, LastMessage: last,
			})
			if err == nil && written == "" {
				continue
			}
			if err == nil {
				piece = written
			}
		}
		if piece == "" {
			if text != "" {
				piece = fmt.Sprint(renamed, text)
				suppress = suppress || role == "system"
			}
			add := func(calls interface{}) {
				encoded, _ := json.Marshal(calls)
				line := string(encoded)
				if renamed != "" {
					line = fmt.Sprint(renamed, " ", line)
				}
				if text != "" {
					piece += "\n" + line
				} else {
					piece = line
				}
			}
			if message.FunctionCall != nil {
				add(message.FunctionCall)
			}
			if message.ToolCalls != nil {
				add(message.ToolCalls)
			}
		}
		pieces = append(pieces, piece)
	}
	joint := "\n"
	if c.Model.Template.Join != nil {
		joint = *c.Model.Template.Join
	}
	joined := strings.Join(pieces, joint)
	around := c.Model.Template.Chat
	if c.Model.Template.Function != "" && uses {
		around = c.Model.Template.Function
	}
	if around == "" {
		return joined
	}
	written, err := render(around, PromptTemplateData{
		SystemPrompt: c.Model.SystemPrompt, SuppressSystemPrompt: suppress, Input: joined, Functions: functions,
		ReasoningEffort: c.Request.ReasoningEffort, Metadata: c.Request.Metadata,
	})
	if err != nil {
		return joined
	}
	return written
}
