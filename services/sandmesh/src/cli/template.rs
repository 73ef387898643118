//! `sandmesh template`: list, get.

use clap::Subcommand;
use sandmesh_proto::template::{GetTemplateRequest, ListTemplatesRequest};

use super::{
    Context, Format,
    client::timed,
    failure::Failure,
    output,
    pages::{self, Found},
    table::Table,
    view::TemplateView,
};

/// What to do with templates.
#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// List templates by name
    List {
        /// At most this many
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Show a template
    Get {
        /// The template
        #[arg(value_name = "ID")]
        template: String,
    },
}

pub(super) async fn run(command: TemplateCommand, context: &Context) -> Result<(), Failure> {
    match command {
        TemplateCommand::List { limit } => list(limit, context).await,
        TemplateCommand::Get { template } => get(template, context).await,
    }
}

/// As JSON, templates are a bare array: that is what the REST API says.
async fn list(limit: u32, context: &Context) -> Result<(), Failure> {
    let found = pages::collect(limit, async |page_size, page_token| {
        let request = ListTemplatesRequest { page_size, page_token, offset: 0 };
        let page = context.client.templates().list_templates(timed(request)).await?.into_inner();
        Ok(Found { items: page.templates, next_page_token: page.next_page_token, total: page.total })
    })
    .await?;
    let page = pages::view(found, limit, TemplateView::from);
    match context.format {
        Format::Json => output::json(&page.items),
        Format::Text => {
            let header = ["ID", "NAME", "RUNTIME", "DEFAULTS", "ACTIVE"];
            output::text(&Table::new(header, page.items.iter().map(row)).to_string())?;
            pages::note(&page);
            Ok(())
        }
    }
}

fn row(template: &TemplateView) -> [String; 5] {
    [
        template.id.clone(),
        template.name.clone(),
        template.runtime_type.clone(),
        template.resources(),
        if template.is_active { "yes" } else { "no" }.to_owned(),
    ]
}

async fn get(template_id: String, context: &Context) -> Result<(), Failure> {
    let answer = context.client.templates().get_template(timed(GetTemplateRequest { template_id })).await?;
    let view = TemplateView::from(answer.into_inner().template.unwrap_or_default());
    match context.format {
        Format::Json => output::json(&view),
        Format::Text => output::text(&view.fields().to_string()),
    }
}
